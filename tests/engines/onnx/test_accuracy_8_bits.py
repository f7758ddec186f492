"""What 8 bits cost in accuracy, in ONNX Runtime."""

import math

import goldens
import lookalikes
import pytest
import torch
from eight_bits import largest_inputs
from onnx_8_bits import session

import conformer_fast as cf
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.distance import relative_error
from conformer_fast.model.precision import FORMATS
from conformer_fast.model.reference import Conformer


@pytest.fixture(scope="module")
def digits():
    """(model, its fused form, its ranges on training images, the split)."""
    pytest.importorskip("sklearn")
    from conformer_fast.datasets.digits import load_digits_split

    split = load_digits_split()
    model = cf.create_model("digits", weights="packaged")
    fused = lower(model)
    return model, fused, largest_inputs(fused, split.train_images[:512].split(64)), split


# Of 359 held-out digits, of which the reference recognizes 357. One less than measured: rounding differs by machine.
RECOGNIZED = {"fp16": 357, "int8": 356, "fp8": 354}


@pytest.mark.slow
@pytest.mark.parametrize("precision", RECOGNIZED)
def test_digits(precision, digits, record_property):
    _, fused, ranges, split = digits
    typed = fused.in_precision(torch.float16)
    proto = onnx_from_model(typed.quantized(Quantization(precision, ranges)) if precision in FORMATS else typed)
    scores = torch.from_numpy(sum(session(proto).run(None, {"images": split.test_images.numpy()})))
    right = (scores.argmax(-1) == split.test_labels).sum().item()
    record_property("table", ("held-out digits recognized in ONNX Runtime, of 359", "digits", precision, right))
    assert right >= RECOGNIZED[precision]


# dB of the scores in ONNX Runtime, on other images than those of the ranges: 3 less than measured, because a rounding
# that falls differently on another machine moves eight images by a dB or two. A lost scale or axis costs far more.
# FP8 rounds each of a product's factors to three bits after the leading one, an error of 31 dB, and the errors of a
# block's products add up; INT8 rounds values near the largest finer and has no more than one range to cover here.
SQNR = {
    ("small", "int8"): 31.3,  # 34.3
    ("small", "fp8"): 19.2,  # 22.2
    ("tiny-p16", "int8"): 31.3,  # 34.3
    ("tiny-p16", "fp8"): 22.7,  # 25.7
}


@pytest.mark.parametrize(("name", "precision"), SQNR)
def test_scores_keep_their_distance(name, precision, small_config, record_property):
    model = lookalikes.fill(Conformer(VARIANTS.get(name, small_config))).eval()
    fused = lower(model)
    known, new = goldens.image(16, 64, 96).split(8)
    quantization = Quantization(precision, largest_inputs(fused, [known]))
    proto = onnx_from_model(fused.in_precision(torch.float16).quantized(quantization))
    scores = torch.from_numpy(sum(session(proto).run(None, {"images": new.numpy()})))
    with torch.no_grad():
        exact = model.double()(new.double()).logits
    reached = -20 * math.log10(relative_error(scores, exact))
    record_property("table", ("SQNR of the scores in ONNX Runtime, dB", name, precision, reached))
    assert reached >= SQNR[name, precision]
