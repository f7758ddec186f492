"""compile() in 8 bits on the CPU: from images or a Quantization to an engine, its verification and its bundle."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines import cache
from conformer_fast.engines.registry import make

pytestmark = pytest.mark.skipif(make("openvino").missing() is not None, reason="needs OpenVINO")


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def quantization(small_model):
    return cf.calibrate(small_model, [images(8, 3, 32, 32)], precision="int8")


def compiled(model, calibration, **options):
    return cf.compile(model, backend="openvino", precision="int8", quantization=calibration, **options)


def test_it_is_within_its_bound(small_model, quantization):
    fast = compiled(small_model, quantization)
    report = fast.verify(images(4, 3, 32, 48))
    assert report.within, report.verdict
    assert fast.reason == "openvino int8: as asked"
    errors = [row.error for row in report.results]
    assert all(1e-3 < error < 0.2 for error in errors), errors  # it is quantized, and still the same model


def test_images_give_what_their_quantization_gives(small_model, quantization):
    batch = images(2, 3, 32, 32)
    measured, given = (compiled(small_model, c)(batch) for c in ([images(8, 3, 32, 32)], quantization))
    assert torch.equal(measured.logits, given.logits)


def test_products_are_in_8_bits(small_model, quantization):
    """What goes back to 16 bits is seen in the error."""
    batch = images(4, 3, 32, 32)
    with torch.no_grad():
        exact = small_model(batch).logits

    def error(calibration):
        return (compiled(small_model, calibration)(batch).logits - exact).norm().item()

    none = replace(quantization, ranges={}, smoothing={})
    assert error(none) < 0.5 * error(quantization)
    assert error(none) == pytest.approx(
        (cf.compile(small_model, backend="openvino", precision=cf.OpenVINO().fastest()[0])(batch).logits - exact)
        .norm()
        .item(),
        rel=0.5,
    )


def test_another_quantization_is_another_engine(small_model, quantization, monkeypatch, tmp_path):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    batch = images(1, 3, 32, 32)

    def engines() -> int:
        return sum("height" in entry.fields for entry in cache.cached_engines())

    one = compiled(small_model, quantization)(batch).logits
    compiled(small_model, quantization)(batch)
    assert engines() == 1
    coarse = replace(quantization, ranges={name: 20 * value for name, value in quantization.ranges.items()})
    assert not torch.equal(compiled(small_model, coarse)(batch).logits, one)
    assert engines() == 2


@pytest.mark.parametrize("again", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_copies_keep_it(again, small_model, quantization):
    fast, batch = compiled(small_model, quantization), images(1, 3, 32, 32)
    assert torch.equal(again(fast)(batch).logits, fast(batch).logits)


def test_bundle(small_model, quantization, tmp_path):
    fast, batch = compiled(small_model, quantization), images(2, 3, 32, 32)
    expected = fast(batch)
    loaded = cf.load(fast.save(tmp_path / "bundle"))
    assert torch.equal(loaded(batch).logits, expected.logits)
    assert loaded.manifest.precision == "int8"
    assert loaded.manifest.precisions == {"products": "int8", "the rest": cf.OpenVINO().fastest()[0]}


@pytest.mark.parametrize(
    ("precision", "calibration", "error", "match"),
    [
        ("int8", None, ValueError, "'int8' takes its ranges from images: give some hundred as quantization"),
        ("fp32", [torch.ones(1, 3, 32, 32)], ValueError, "quantization is for int8 and fp8; leave it out .* 'fp32'"),
        ("fp8", [torch.ones(1, 3, 32, 32)], cf.BackendError, "'fp8' is not available on backend 'openvino'"),
        ("int8", cf.Quantization("fp8", {}), ValueError, "made for fp8, not for 'int8'"),
        ("int8", cf.Quantization("int8", {"conv_9.conv1": 1.0}), ValueError, "no products conv_9.conv1, but stem, "),
    ],
    ids=["no images", "needless", "fp8", "other precision", "other model"],
)
def test_what_does_not_fit_is_refused(precision, calibration, error, match, small_model):
    with pytest.raises(error, match=match):
        cf.compile(small_model, backend="openvino", precision=precision, quantization=calibration)(images(1, 3, 32, 32))
