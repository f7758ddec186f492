"""Train the model of tests/data/digit_pairs.safetensors, 100 classes: python examples/train_digit_pairs.py

Pictures are drawn as they are needed, so none is seen twice; the held-out ones show digits that no training picture
has. One and a half steps a second on one CPU core that computes in bfloat16.

The shipped weights took two runs. The first, 3,700 steps with one learning rate and without `quieten`, taught the CNN
branch (95 % of held-out pictures right) and left the transformer at chance, hence both. The second was
`--steps 1500 --seed 1 --weights FIRST`. Other machines and PyTorch versions will give other weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from train_digits import MAX_GRAD_NORM, WEIGHT_DECAY, evaluate, learning_rate_factor

from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.metadata import metadata_of
from conformer_fast.datasets.digit_pairs import CONFIG, IMAGE_SIZE, DigitPairs
from conformer_fast.model.recipe import MEAN, STD, Recipe
from conformer_fast.model.reference import Conformer
from conformer_fast.preprocessing.cpu import preprocess

BATCH = 96
PEAK_LEARNING_RATE = 1e-3
TEST_PICTURES = 2000
TEST_SEED = 1
NAMES = tuple(f"{number:02d}" for number in range(CONFIG.num_classes))  # of the folders of digit_pairs.py
RECIPE = Recipe(IMAGE_SIZE, CONFIG.num_heads, NAMES, MEAN, STD)


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    model = create_model(CONFIG)
    if args.weights:
        model.load_state_dict(load_file(args.weights), strict=False)
    quieten(model)
    train(model, DigitPairs("train", args.seed), args.steps, args.batch)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)  # what is judged is what is saved
    accuracy = evaluate(model, *test_set(args.test_pictures))
    print("held-out accuracy:", ", ".join(f"{name} {value:.2%}" for name, value in accuracy.items()))
    metadata = {f"accuracy_{name}": value for name, value in accuracy.items()}
    metadata |= {"seed": args.seed, "steps": args.steps}
    save_file(state, args.output, metadata=metadata_of(RECIPE) | {name: str(value) for name, value in metadata.items()})
    print("saved", args.output)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-pictures", type=int, default=TEST_PICTURES)
    parser.add_argument("--weights", type=Path, help="go on from these, with the learning rate at its peak again")
    parser.add_argument("--output", type=Path, default=Path("digit_pairs.safetensors"))
    return parser.parse_args()


def train(model: Conformer, pairs: DigitPairs, steps: int, batch: int) -> None:
    """AdamW under bfloat16 autocast, a short linear warm-up, then a cosine to zero; a cross entropy for each head."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(model), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    progress = tqdm(range(steps), unit="step", mininterval=10)
    for _ in progress:
        pictures, numbers = pairs.draw(batch)
        with torch.autocast("cpu", torch.bfloat16):
            conv_logits, trans_logits = model(resized(pictures))
        conv, trans = (F.cross_entropy(logits.float(), numbers) for logits in (conv_logits, trans_logits))
        optimizer.zero_grad()
        (conv + trans).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        progress.set_postfix(conv=f"{conv.item():.4f}", trans=f"{trans.item():.4f}", refresh=False)
    model.eval()


def quieten(model: Conformer) -> None:
    """The class token starts at zero, and so does what the transformer blocks add to it.

    It doubles in every coupled block, so that what block 1 adds counts 2048 times what block 12 adds: from random
    starting values, the first blocks' noise would drown the rest.
    """
    with torch.no_grad():
        model.cls_token.zero_()
        for index in range(1, model.config.depth + 1):
            for product in residual_products(model, index):
                product.weight.zero_()
                product.bias.zero_()


def parameter_groups(model: Conformer) -> list[dict]:
    """What a transformer block adds is learned half as fast as in the next block, as it counts twice as much there."""
    groups, grouped = [], set()
    for index in range(1, model.config.depth + 1):
        parameters = [parameter for part in residual_products(model, index) for parameter in part.parameters()]
        groups.append({"params": parameters, "lr": PEAK_LEARNING_RATE * 2.0 ** (index - model.config.depth)})
        grouped.update(map(id, parameters))
    others = [parameter for parameter in model.parameters() if id(parameter) not in grouped]
    return [*groups, {"params": others, "lr": PEAK_LEARNING_RATE}]


def residual_products(model: Conformer, index: int) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    block = model.trans_1 if index == 1 else model.coupled_block(index).trans_block
    return block.attn.proj, block.mlp.fc2


def resized(pictures: Tensor) -> Tensor:
    """The published preprocessing, of a whole batch and but for rounding: uint8 (B, 3, H, W) -> (B, 3, 64, 64)."""
    H, W = pictures.shape[-2:]
    edge = int(256 / 224 * IMAGE_SIZE)
    size = edge, int(edge * W / H)
    scaled = F.interpolate(pictures.float() / 255, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (round((side - IMAGE_SIZE) / 2) for side in size)
    cropped = scaled[:, :, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((cropped - mean) / std).contiguous(memory_format=torch.channels_last)


def test_set(count: int) -> tuple[Tensor, Tensor]:
    """Held-out pictures, preprocessed exactly, (count, 3, 64, 64), and their numbers."""
    pictures, numbers = DigitPairs("test", TEST_SEED).draw(count)
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    return torch.stack([preprocess(image, IMAGE_SIZE) for image in images]), numbers


if __name__ == "__main__":
    main()
