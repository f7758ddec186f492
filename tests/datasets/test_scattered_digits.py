"""Pictures of scattered digits: the same for the same seed, held out by digit, with boxes and masks that are exact."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conformer_fast.checkpoints.reading import read_checkpoint, read_state_dict
from conformer_fast.datasets.digits import load_pixels, split_indices
from conformer_fast.datasets.scattered_digits import (
    FEWEST,
    LARGEST_OVERLAP,
    MOST,
    SIDE,
    ScatteredDigits,
    box_of,
    seen,
    write_coco,
)
from conformer_fast.errors import ArgumentError
from conformer_fast.model.detector.boxes import overlaps
from conformer_fast.model.detector.config import MULTIPLE, PACKAGED
from conformer_fast.model.detector.reference import Detector

pytest.importorskip("sklearn")

TRAIN_SCRIPT = Path(__file__).parents[2] / "examples" / "train_detector.py"


def test_pictures():
    pictures, objects = ScatteredDigits("test", 0).draw(32)
    assert (pictures.shape, pictures.dtype) == ((32, 3, SIDE, SIDE), torch.uint8)
    assert SIDE % MULTIPLE == 0
    assert len({len(found.labels) for found in objects}) > 2
    assert torch.cat([found.labels for found in objects]).unique().tolist() == list(range(PACKAGED.num_classes))
    for picture, (boxes, labels, masks) in zip(pictures, objects, strict=True):
        count = len(labels)
        assert FEWEST <= count <= MOST
        assert (boxes.shape, boxes.dtype) == ((count, 4), torch.float32)
        assert (labels.shape, labels.dtype) == ((count,), torch.int64)
        assert (masks.shape, masks.dtype) == ((count, SIDE, SIDE), torch.bool)
        assert picture.float().std((1, 2)).max() > 5  # there is something on it


def test_the_same_seed_draws_the_same():
    (one, first), (other, second) = (ScatteredDigits("train", 3).draw(4) for _ in range(2))
    assert torch.equal(one, other)
    for left, right in zip(first, second, strict=True):
        assert all(map(torch.equal, left, right))
    assert not torch.equal(ScatteredDigits("train", 4).draw(4)[0], one)


def test_a_split_has_its_own_digits():
    pixels, labels = load_pixels()
    for split, members in zip(("train", "test"), split_indices(labels), strict=True):
        digits = ScatteredDigits(split, 0)
        assert np.array_equal(digits._digits.numpy() * 16, pixels[members])
        assert np.array_equal(digits._labels.numpy(), labels[members])


def test_boxes_and_masks():
    """A box reaches exactly to its mask's outermost pixels; no pixel is two digits'; boxes overlap little."""
    for boxes, _, masks in ScatteredDigits("test", 1).draw(16)[1]:
        assert masks.sum(0).max() == 1
        for (x1, y1, x2, y2), mask in zip(boxes.int().tolist(), masks, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert inside.sum() == mask.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert overlaps(boxes, boxes).fill_diagonal_(0).max() <= LARGEST_OVERLAP


def test_box_of_one_pixel():
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[2, 6] = True
    assert box_of(mask).tolist() == [6, 2, 7, 3]


def test_a_digit_is_seen_by_at_least_half():
    mask, covered = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:2] = True
    covered[0] = True
    half = seen(mask, covered)
    assert half is not None
    assert half.nonzero().tolist() == [[1, x] for x in range(4)]
    covered[1, 0] = True
    assert seen(mask, covered) is None
    nothing = torch.zeros_like(mask)
    assert seen(nothing, nothing) is None


def test_masks_are_the_strokes():
    """That are seen; and what covers others is what is seen itself."""
    digits = ScatteredDigits("test", 5)
    inks, objects = digits._scatter()
    covered = np.zeros((SIDE, SIDE), dtype=bool)
    for ink, mask in zip(inks, objects.masks.numpy(), strict=True):
        assert np.array_equal(mask, (ink >= 0.5) & ~covered)
        assert 2 * mask.sum() >= (ink >= 0.5).sum()
        covered |= mask


def test_what_cannot_be_drawn(tmp_path):
    digits = ScatteredDigits("test", 1)
    pictures, objects = digits.draw(2)
    for call, message in (
        (lambda: ScatteredDigits("valid", 1), "unknown split 'valid'; choose one of train, test"),
        (lambda: digits.draw(0), "count must be"),
        (lambda: digits.draw_on(torch.zeros(3, 64, 64, dtype=torch.uint8)), r"uint8 \(3, 128, 128\), got torch.uint8"),
        (lambda: digits.draw_on(torch.zeros(3, SIDE, SIDE)), r"uint8 \(3, 128, 128\), got torch.float32"),
        (lambda: write_coco(tmp_path, pictures[:1], objects), "1 pictures and the objects of 2"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    assert not [*tmp_path.iterdir()]


def test_on_a_picture_of_ones_own():
    """Nothing is drawn where no digit is."""
    ground = torch.full((3, SIDE, SIDE), 200, dtype=torch.uint8)
    picture, objects = ScatteredDigits("test", 1).draw_on(ground)
    near = torch.nn.functional.max_pool2d(objects.masks.any(0).float()[None], 15, 1, 7)[0].bool()
    far, on = (picture[:, mask].float().mean() for mask in (~near, objects.masks.any(0)))
    assert abs(far - 200) < 2
    assert abs(on - 200) > 10


@pytest.mark.slow
def test_training_script(tmp_path):
    out = tmp_path / "weights.safetensors"
    command = [sys.executable, TRAIN_SCRIPT, "--steps", "1", "--test-pictures", "2", "--output", out]
    subprocess.run(command, check=True, timeout=500, capture_output=True)
    state = read_state_dict(out)
    assert state["backbone.conv1.weight"].dtype == torch.float16
    missing, unexpected = Detector(PACKAGED).load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert read_checkpoint(out).recipe.labels == tuple("0123456789")
