"""A trained model classifies held-out images as well on every backend and precision as the reference does."""

import pytest
import torch

import conformer_fast as cf
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.engines.registry import BACKENDS, make

pytest.importorskip("sklearn")

KINDS = [
    ("reference", "fp32"),
    *(("openvino", p) for p in ("fp32", "bf16", "fp16")),
    *(("triton", p) for p in ("fp32", "bf16", "fp16")),
]


@pytest.fixture(scope="module")
def split():
    return load_digits_split()


@pytest.fixture(scope="module")
def model():
    return cf.create_model("digits", weights="packaged")


def accuracy(output: cf.ConformerOutput, labels: torch.Tensor) -> float:
    return (output.logits.argmax(-1).cpu() == labels).double().mean().item()


@pytest.fixture(scope="module")
def plain_accuracy(model, split) -> float:
    with torch.no_grad():
        return accuracy(model(split.test_images), split.test_labels)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "precision"), KINDS, ids=["-".join(kind) for kind in KINDS])
def test_digits(backend, precision, model, split, plain_accuracy):
    missing = make(backend).missing()
    if missing or precision not in make(backend).precisions().native:
        pytest.skip(missing or f"this CPU does not compute in {precision}")
    fast = cf.compile(model, backend=backend, precision=precision)
    assert len(split.test_labels) == 359
    reached = accuracy(fast(split.test_images.to(fast.device)), split.test_labels)
    assert reached >= 0.98
    assert abs(reached - plain_accuracy) <= 0.005
    report = fast.verify(split.test_images[:64].to(fast.device))
    assert report.within, report.verdict
    assert min(report.top1_agreement.values()) >= 0.98


def test_every_kind_that_exists_is_tried():
    """A backend or precision that is added must be added here."""
    available = {
        (name, precision)
        for name in BACKENDS
        if make(name).missing() is None
        for precision in make(name).precisions().native
    }
    assert available <= set(KINDS)


def test_auto_is_as_accurate(model, split, plain_accuracy):
    fast = cf.compile(model)
    assert abs(accuracy(fast(split.test_images.to(fast.device)), split.test_labels) - plain_accuracy) <= 0.005
