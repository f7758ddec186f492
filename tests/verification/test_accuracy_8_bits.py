"""The trained models keep their held-out accuracy on every path that runs here, calibrated as a user calibrates.

fp16 and bf16 may cost 0.05 percentage points, int8 and fp8 0.5. Triton's interpreter takes seconds a picture: the
kernels are held against the simulated arithmetic on a few, and `benchmarks.held_out` runs more.
"""

import pytest
import torch

import conformer_fast as cf
from benchmarks.held_out import MODELS, PATHS, chosen
from benchmarks.trained import Trained, trained
from conformer_fast.engines.openvino.device import native_precisions
from conformer_fast.engines.registry import make
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import usually_stored
from conformer_fast.model.distance import relative_error
from conformer_fast.model.outputs import SUM
from conformer_fast.model.precision import FORMATS
from conformer_fast.verification.implementations import Job, run

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow

POINTS = {"fp32": 0.05, "bf16": 0.05, "fp16": 0.05, "int8": 0.5, "fp8": 0.5}
LEAST = {"digits": 99, "digit-pairs": 90}  # percent that the reference gets right: less would prove little
COUNTS = {"digits": 359, "digit-pairs": 2000}
IN_8_BITS = 1000  # pictures at most: 0.5 points are five of them


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def subject(name, tmp_path_factory) -> Trained:
    return trained(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def held_out(subject):
    return subject.images()


@pytest.fixture(scope="module")
def exact(subject, held_out):
    return chosen("reference", "fp32", subject, held_out[0])


def percent(found, labels) -> float:
    return 100 * (found == labels).double().mean().item()


def test_the_reference_is_good(name, held_out, exact):
    assert len(exact) == COUNTS[name]
    assert percent(exact, held_out[1]) >= LEAST[name]


@pytest.mark.parametrize(
    ("implementation", "precision"),
    [path for path in PATHS if path[0] not in ("reference", "kernels")],
    ids=lambda value: value,
)
def test_held_out_accuracy(implementation, precision, name, subject, held_out, exact, record_property):
    count = IN_8_BITS if precision in FORMATS else None
    images, labels, exact = (values[:count] for values in (*held_out, exact))
    if implementation == "onnxruntime":
        pytest.importorskip("onnxruntime")
    if implementation == "native" and make("native").missing():
        pytest.skip(make("native").missing())
    if implementation == "openvino" and precision not in (*native_precisions(), "int8"):
        pytest.skip(f"this CPU does not compute in {precision}")
    found = chosen(implementation, precision, subject, images)
    drop = percent(exact, labels) - percent(found, labels)
    record_property("table", ("held-out accuracy lost, points", name, f"{implementation} {precision}", drop))
    assert drop <= POINTS[precision] + 1e-9


@pytest.mark.parametrize("precision", FORMATS)
def test_8_bits_are_in_use(precision, subject):
    """The accuracy was not bought by going back to 16 bits."""
    kept = {product for product in lower(subject.model).quantizable if usually_stored(product, precision)}
    assert kept <= subject.quantizations[precision].ranges.keys()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_kernels_compute_the_simulated_arithmetic(precision, name, subject, held_out):
    if make("triton").missing() and (name != "digits" or precision != "int8"):
        pytest.skip("the interpreter takes a minute for 12 blocks, and leaves fp8 products to PyTorch")
    images, quantization = held_out[0][:2], subject.quantizations[precision]
    with torch.no_grad():
        (simulated,) = lower(subject.model, [SUM], quantization=quantization)(images)
    ran = run("kernels", precision, Job(subject.model, images, (SUM,), (), {precision: quantization}))
    assert ran.by_pytorch == 0
    assert relative_error(ran.values[SUM], simulated) < {"int8": 0.05, "fp8": 0.1}[precision]


@pytest.mark.parametrize("name", ["digits"], indirect=True)  # the path is the same for both, and the other's is long
def test_evaluate_says_the_same(subject, held_out, exact):
    fast = cf.compile(subject.model, precision="int8", backend="openvino", quantization=subject.quantizations["int8"])
    data = cf.open_dataset(subject.held_out).evenly(IN_8_BITS)
    taken = [index * len(exact) // len(data) for index in range(len(data))]
    right = (exact == held_out[1])[taken]
    found = cf.evaluate(fast, data, reference=subject.model, size=64, workers=0, progress=False)
    assert found.evaluated == len(right)
    assert found.reference["sum"].top1 == int(right.sum())
    drop = (found.reference["sum"].top1 - found.compiled["sum"].top1) / found.evaluated
    assert 100 * drop <= POINTS["int8"]
    assert found.agreement["sum"] >= 0.98 * found.evaluated
