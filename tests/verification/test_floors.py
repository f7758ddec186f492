"""The floor of 8 bits parts good quantizations from bad ones: the packaged digits model, on pictures it never saw."""

import pytest
import torch

import conformer_fast as cf
from conformer_fast.inference.lower import lower
from conformer_fast.model.outputs import LOGITS
from conformer_fast.model.recipe import MEAN, STD
from conformer_fast.verification.verify import Report, exact_outputs, report_of

pytest.importorskip("sklearn")

PICTURES = {
    "like the model's": lambda images: images,
    "a few": lambda images: images[:4],
    "gray": torch.zeros_like,
    "0 ... 255": lambda images: 255 * (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)),
}


@pytest.fixture(scope="module")
def split():
    from conformer_fast.datasets.digits import load_digits_split

    return load_digits_split()


@pytest.fixture(scope="module")
def model():
    return cf.create_model("digits", "packaged")


def judged(model: cf.Conformer, quantization: cf.Quantization, images: torch.Tensor) -> Report:
    """A model that computes exactly what PyTorch does in 8 bits, so that only the floor can find fault with it."""
    with torch.no_grad():
        values = lower(model, LOGITS, quantization=quantization)(images)
    named = dict(zip(LOGITS, values, strict=True))
    return report_of("simulated", quantization.precision, named, {}, exact_outputs(model, images, LOGITS), named)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")
@pytest.mark.parametrize("of", PICTURES)
def test_a_verdict_can_fail(of, model, split):
    calibration = PICTURES[of](split.train_images[:32])
    report = judged(model, cf.calibrate(model, [calibration], precision="int8"), split.test_images[:128])
    good = of in ("like the model's", "a few")
    assert report.within is good, str(report)
    assert (min(report.top1_agreement.values()) > 0.95) is good
    assert all((row.sqnr_db > 25) if good else (row.sqnr_db < 5) for row in report.results), str(report)


def test_one_bad_range_is_found(model, split):
    good = cf.calibrate(model, [split.train_images[:16]], precision="fp8", smoothquant=False)
    narrow = {**good.ranges, (last := "conv_trans_3.fusion_block.conv3"): 0.02 * good.ranges[last]}
    report = judged(model, cf.Quantization("fp8", narrow), split.test_images[:32])
    assert [row.within for row in report.results] == [False, True], str(report)
    assert report.verdict.startswith("NOT within the bound for fp8: conv_logits errs by 0.5")
    assert "the floor of 14 dB" in report.verdict
