"""What the tests of build() share: a small engine by TensorRT-RTX, which needs no GPU for it."""

from importlib.util import find_spec

import pytest
import torch
from bundle_samples import images

from conformer_fast.bundles.folder import read_bundle
from conformer_fast.deploy.build import build
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.model.precision import DTYPES
from conformer_fast.model.shapes import Shapes

pytest.importorskip("onnxruntime")
NEEDS_RTX = pytest.mark.skipif(
    not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX to build with"
)
SHAPES = Shapes(batch=(1, 2, 4), height=(32, 32, 64), width=(32, 64, 64))
TARGETS = {"fp32": ["sm86"], "fp16": ["sm86"], "bf16": ["sm86"], "int8": ["sm86"], "fp8": ["sm120", "sm89"]}


def calibration() -> list[torch.Tensor]:
    return [images(4, 3, 32, 32), images(8, 3, 32, 32, seed=1)]


def build_in(folder, model, precision="fp16", **options):
    """A bundle of `model`, built by TensorRT-RTX. Returns its manifest."""
    given = {"shapes": [SHAPES], "targets": TARGETS[precision], "flavor": "tensorrt-rtx"}
    if precision not in DTYPES:
        given["quantization"] = calibration()
    return read_bundle(build(model, folder, precision=precision, **{**given, **options}), format_of).manifest
