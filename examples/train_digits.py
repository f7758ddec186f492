"""Train the packaged "digits" model on the UCI handwritten digits: python examples/train_digits.py

Takes six minutes on one CPU core (OMP_NUM_THREADS=1). The same seed, machine, thread count and PyTorch give the same
weights.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.metadata import metadata_of
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.model.distance import top1_agreement
from conformer_fast.model.recipe import usual_recipe
from conformer_fast.model.reference import Conformer

BATCH = 64
PEAK_LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.05  # of all steps
MAX_GRAD_NORM = 1.0


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    data = load_digits_split()
    model = create_model("digits")
    train(model, data.train_images[: args.limit], data.train_labels[: args.limit], args.epochs)
    accuracy = evaluate(model, data.test_images, data.test_labels)
    print("held-out accuracy:", ", ".join(f"{name} {value:.2%}" for name, value in accuracy.items()))
    metadata = {f"accuracy_{name}": value for name, value in accuracy.items()}
    save(model, args.output, {**metadata, "seed": args.seed, "epochs": args.epochs})
    print("saved", args.output)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on the first so many digits only, for a quick trial")
    parser.add_argument("--output", type=Path, default=Path("digits.safetensors"))
    return parser.parse_args()


def train(model: Conformer, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW, a short linear warm-up, then a cosine to zero. Each head has its own cross entropy, as in the paper."""
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    model.train()
    progress = tqdm(range(epochs), unit="epoch")
    for _ in progress:
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH):
            output = model(augment(images[batch]))
            target = labels[batch]
            loss = F.cross_entropy(output.conv_logits, target) + F.cross_entropy(output.trans_logits, target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        progress.set_postfix(loss=f"{total / len(images):.4f}")
    model.eval()


def learning_rate_factor(step: int, steps: int) -> float:
    """0 < factor <= 1: rises over the first WARM_UP of the steps, then falls along a cosine."""
    done = (step + 1) / (steps + 1)
    return min(done / WARM_UP, 0.5 * (1 + math.cos(math.pi * done)))


def augment(images: Tensor) -> Tensor:
    """Each digit turned by up to 12 degrees, scaled by up to 10 % and moved by up to 6 pixels; the edge is repeated."""
    B = len(images)
    angle = uniform(B, math.radians(12))
    scale = 1 + uniform(B, 0.1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift_x, shift_y = uniform(B, 12 / images.shape[-1]), uniform(B, 12 / images.shape[-2])  # the side is 2 long
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def uniform(count: int, bound: float) -> Tensor:
    """(count,) between -bound and bound."""
    return (2 * torch.rand(count) - 1) * bound


@torch.inference_mode()
def evaluate(model: Conformer, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right answers of the CNN head, the transformer head and their sum."""
    output = model(images)
    scores = {"conv": output.conv_logits, "trans": output.trans_logits, "sum": output.logits}
    return {name: top1_agreement(score, labels) for name, score in scores.items()}


def save(model: Conformer, path: Path, metadata: dict[str, float]) -> None:
    """The parameters and running statistics under their official names, and what the model is for."""
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(
        state,
        path,
        metadata=metadata_of(usual_recipe(model.config)) | {name: str(value) for name, value in metadata.items()},
    )


if __name__ == "__main__":
    main()
