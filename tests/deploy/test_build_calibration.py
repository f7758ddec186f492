"""build() and the images that 8 bits take their ranges from."""

import math

import pytest
import torch
from build_samples import NEEDS_RTX, build_in
from bundle_samples import images

from conformer_fast.calibration import resolve

pytestmark = NEEDS_RTX


def test_ranges_come_from_every_batch(small_model, tmp_path, fresh_cache, asked):
    """Also from batches of another size, of other floating point types, and from a generator."""
    plain = [images(2, 3, 32, 32), 2 * images(1, 3, 64, 32)]
    first = build_in(tmp_path / "first", small_model, "int8", quantization=plain)
    other = (batch.double() for batch in [*plain, images(0, 3, 32, 32)])
    again = build_in(tmp_path / "again", small_model, "int8", quantization=other)
    alone = build_in(tmp_path / "alone", small_model, "int8", quantization=plain[:1])
    assert first.sha256["onnx"] == again.sha256["onnx"] != alone.sha256["onnx"]
    assert first.measured["images"] == 2  # one batch for ONNX Runtime: of the first size
    assert len(asked) == 2


def test_the_calibrations_batches_are_not_kept(small_model, monkeypatch):
    """A thousand photographs are more than the memory should hold."""
    alive: list[torch.Tensor] = []

    def batches():
        for seed in range(5):
            alive.append(images(4, 3, 32, 32, seed=seed))
            yield alive[-1]

    _, first = resolve.resolve(small_model, "int8", batches())
    assert first.shape == (8, 3, 32, 32)
    assert torch.equal(first[4:], alive[1])
    assert all(first.untyped_storage().data_ptr() != batch.untyped_storage().data_ptr() for batch in alive)


BAD_CALIBRATION = {
    "none": ([], ValueError, "calibration got no images"),
    "empty batches": ([torch.zeros(0, 3, 32, 32)], ValueError, "calibration got no images"),
    "one batch": (torch.zeros(2, 3, 32, 32), ValueError, r"must be a list of batches, such as images.split\(32\)"),
    "gray": ([torch.zeros(2, 1, 32, 32)], ValueError, r"images must have shape .*got \(2, 1, 32, 32\)"),
    "small": ([torch.zeros(2, 3, 8, 8)], ValueError, "smaller than one 16x16 patch"),
    "NaN": ([torch.full((1, 3, 32, 32), math.nan)], ValueError, "NaN or infinite"),
    "pixels": ([torch.zeros(1, 3, 32, 32, dtype=torch.uint8)], TypeError, "floating point images, got torch.uint8"),
    "paths": (["a.png"], TypeError, "floating point images, got str"),
}


@pytest.mark.parametrize(("batches", "error", "message"), BAD_CALIBRATION.values(), ids=BAD_CALIBRATION)
def test_bad_calibration(batches, error, message, small_model, tmp_path):
    with pytest.raises(error, match=message):
        build_in(tmp_path / "bundle", small_model, "int8", quantization=batches)
    assert list(tmp_path.iterdir()) == []
