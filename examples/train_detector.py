"""Train a small detector on pictures of scattered handwritten digits: python examples/train_detector.py

Pictures are drawn as they are needed, so none is seen twice; the held-out ones show digits that no training picture
has. The average precisions are computed by pycocotools, where that is installed. 5000 steps take less than an hour on a
CPU core (OMP_NUM_THREADS=1). The same seed, machine, thread count and PyTorch give the same weights: so were those
made that ship with the package.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from train_digits import MAX_GRAD_NORM, WEIGHT_DECAY, learning_rate_factor

from conformer_fast.checkpoints.metadata import metadata_of
from conformer_fast.datasets.scattered_digits import SIDE, Objects, ScatteredDigits, write_coco
from conformer_fast.evaluation.coco import evaluate_detector
from conformer_fast.model.detector.boxes import BOX_STDS, REGION_STDS, anchors, overlaps
from conformer_fast.model.detector.config import BOX_SIDE, MASK_SIDE, RATIOS
from conformer_fast.model.detector.config import PACKAGED as CONFIG
from conformer_fast.model.detector.detect import ImageSize, regions_of
from conformer_fast.model.detector.operators import read_regions, roi_align
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.recipe import MEAN, STD, Recipe

BATCH = 8
PEAK_LEARNING_RATE = 2e-3
ANCHORS, FOUND_ANCHORS = 128, 64  # of a picture, that its loss is of; of these on objects, at most
REGIONS, FOUND_REGIONS = 64, 16
ANCHOR_FOUND, ANCHOR_MISSED = 0.7, 0.3  # overlaps with an object: at least, and less than
REGION_FOUND = 0.5
TEST_PICTURES = 500
TEST_SEED = 1
RECIPE = Recipe(SIDE, CONFIG.backbone.num_heads, tuple(map(str, range(CONFIG.num_classes))), MEAN, STD)
SIZE = ImageSize(SIDE, SIDE, SIDE, SIDE)


def main() -> None:
    args = parse_args()
    if args.test_pictures < 1 or not args.output.parent.is_dir():
        raise SystemExit("give at least one test picture, and an output in a folder that is there")
    torch.manual_seed(args.seed)
    model = Detector(CONFIG)
    train(model, ScatteredDigits("train", args.seed), args.steps)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items() if value.is_floating_point()}
    model.load_state_dict(state, strict=False)  # what is judged is what is saved
    model.recipe = RECIPE
    figures: dict[str, float] = {}
    if importlib.util.find_spec("pycocotools"):
        figures = evaluate(model, args.test_pictures)
        print("held out:", ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    else:
        print('no average precision without pycocotools: pip install "conformer-fast[coco]"')
    metadata = {**figures, "seed": args.seed, "steps": args.steps}
    save_file(state, args.output, metadata=metadata_of(RECIPE) | {name: str(value) for name, value in metadata.items()})
    print("saved", args.output)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-pictures", type=int, default=TEST_PICTURES)
    parser.add_argument("--output", type=Path, default=Path("scattered_digits.safetensors"))
    return parser.parse_args()


def train(model: Detector, digits: ScatteredDigits, steps: int) -> None:
    """AdamW, a short linear warm-up, then a cosine to zero. All losses count the same."""
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    model.to(memory_format=torch.channels_last).train()
    progress = tqdm(range(steps), unit="step", mininterval=10)
    for _ in progress:
        pictures, objects = digits.draw(BATCH)
        parts = losses(model, normalized(pictures), objects)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        progress.set_postfix({name: f"{part.item():.3f}" for name, part in parts.items()}, refresh=False)
    model.eval()


def normalized(pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, as the model reads them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pictures / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class Regions(NamedTuple):
    """What the heads learn from in a picture. The first F of R regions are on objects.

    regions: (R, 4), x1 y1 x2 y2 in pixels
    labels:  (R,), of the object, or the background's number
    boxes:   (F, 4), of the objects
    masks:   (F, 28, 28), of the objects, as their regions have them, 0.0 or 1.0
    """

    regions: Tensor
    labels: Tensor
    boxes: Tensor
    masks: Tensor


def losses(model: Detector, images: Tensor, objects: list[Objects]) -> dict[str, Tensor]:
    """Of the region proposal network (anchor) and the heads (label, box, mask)."""
    proposed = model.propose(images)
    anchor, every, box_features, mask_features = [], [], [], []
    for index, target in enumerate(objects):
        maps, values = ([part[index] for part in parts] for parts in proposed)
        anchor.append(anchor_loss(values, target))
        regions = chosen_regions([part.detach() for part in values], target)
        every.append(regions)
        box_features.append(read_regions(maps, regions.regions, CONFIG.strides, BOX_SIDE))
        mask_features.append(read_regions(maps, regions.regions[: len(regions.boxes)], CONFIG.strides, MASK_SIDE))
    logits, deltas = model.boxes(torch.cat(box_features))
    labels = torch.cat([regions.labels for regions in every])
    found = labels < CONFIG.num_classes
    moves = torch.cat([deltas_of(regions.regions[: len(regions.boxes)], regions.boxes, BOX_STDS) for regions in every])
    box = (of_label(deltas[found].unflatten(1, (-1, 4)), labels[found]) - moves).abs().sum() / len(labels)
    shares = of_label(model.masks(torch.cat(mask_features)), labels[found])
    mask = F.binary_cross_entropy_with_logits(shares, torch.cat([regions.masks for regions in every]))
    return {"anchor": torch.stack(anchor).mean(), "label": F.cross_entropy(logits, labels), "box": box, "mask": mask}


def anchor_loss(values: list[Tensor], target: Objects) -> Tensor:
    """Whether an anchor is on an object, and where that is. values: of each map (3 + 12, H, W), see parts.Proposed"""
    placed, logits, deltas = [], [], []
    for part, stride in zip(values, CONFIG.strides, strict=True):
        placed.append(anchors(part.shape[1], part.shape[2], stride, like=part))
        by_pixel = part.permute(1, 2, 0)
        logits.append(by_pixel[..., : len(RATIOS)].reshape(-1))
        deltas.append(by_pixel[..., len(RATIOS) :].reshape(-1, 4))
    boxes, logit, delta = torch.cat(placed), torch.cat(logits), torch.cat(deltas)
    shared = overlaps(boxes, target.boxes)
    shared = shared + (shared == shared.amax(0))  # an object's best anchors are its own, however little they overlap
    best, owner = shared.max(1)
    found, missed = chosen(best >= ANCHOR_FOUND, best < ANCHOR_MISSED, ANCHORS, FOUND_ANCHORS)
    judged = torch.cat([logit[found], logit[missed]])
    truth = torch.cat([torch.ones(len(found)), torch.zeros(len(missed))])
    moves = deltas_of(boxes[found], target.boxes[owner[found]], REGION_STDS)
    return F.binary_cross_entropy_with_logits(judged, truth) + (delta[found] - moves).abs().sum() / len(judged)


def chosen_regions(values: list[Tensor], target: Objects) -> Regions:
    """Some of those that are proposed, and of the objects' own boxes."""
    regions = torch.cat([target.boxes, regions_of(values, SIZE, CONFIG)[0]])
    best, owner = overlaps(regions, target.boxes).max(1)
    found, missed = chosen(best >= REGION_FOUND, best < REGION_FOUND, REGIONS, FOUND_REGIONS)
    masks = roi_align(target.masks.float(), regions[found], 1, 2 * MASK_SIDE)
    return Regions(
        regions[torch.cat([found, missed])],
        torch.cat([target.labels[owner[found]], torch.full_like(missed, CONFIG.num_classes)]),
        target.boxes[owner[found]],
        (of_label(masks, owner[found]) >= 0.5).float(),
    )


def chosen(found: Tensor, missed: Tensor, count: int, most_found: int) -> tuple[Tensor, Tensor]:
    """`count` random indices in all, as far as there are so many: (of found ones, of missed ones). (N,), (N,), bool"""
    first, second = (mask.nonzero()[:, 0] for mask in (found, missed))
    first = first[torch.randperm(len(first))[:most_found]]
    return first, second[torch.randperm(len(second))[: count - len(first)]]


def of_label(values: Tensor, labels: Tensor) -> Tensor:
    """Each one's values for its own label. (N, labels, ...), (N,) -> (N, ...)."""
    return values[torch.arange(len(labels)), labels]


def deltas_of(boxes: Tensor, targets: Tensor, stds: tuple[float, ...]) -> Tensor:
    """The deltas with which `moved` makes targets of boxes. (N, 4), (N, 4) -> (N, 4)."""
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return torch.cat([shift / size, (target_size / size).log()], 1) / boxes.new_tensor(stds)


def evaluate(model: Detector, count: int) -> dict[str, float]:
    """COCO's average precision of boxes and masks on held-out pictures: over overlaps from 0.5 to 0.95, and at 0.5."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_coco(Path(folder), *ScatteredDigits("test", TEST_SEED).draw(count))
        found = evaluate_detector(model, file, folder).compiled
    return {f"{kind}_{name}": getattr(found[kind], name) or 0.0 for kind in found for name in ("ap", "ap50")}


if __name__ == "__main__":
    main()
