"""diff(): the same images through every implementation, and where error comes in."""

import json
import math
import re
import sys
from dataclasses import replace

import lookalikes
import pytest
import torch
from eight_bits import largest_inputs

import conformer_fast as cf
from conformer_fast import Conformer
from conformer_fast.engines.base import Outcome
from conformer_fast.engines.onnx.runtime import ONNXRuntime
from conformer_fast.engines.triton import alone
from conformer_fast.errors import BackendError
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.kernels import dispatch
from conformer_fast.model.outputs import observed_outputs
from conformer_fast.verification.diff import Column, Fall, diff
from conformer_fast.verification.verify import Report, Row, verify

COUPLED = ("fcu_down", "tokens", "fcu_up", "map")
BLOCKS = ["1.tokens", "1.map", *(f"{block}.{kind}" for block in (2, 3) for kind in COUPLED)]
LOGITS = ["conv_logits", "trans_logits"]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def quantization(model, precision: str) -> Quantization:
    return Quantization(precision, largest_inputs(lower(model), [images(4, 3, 32, 32)]))


def column(*rows: Row, results: tuple[Row, ...] = (), how: str = "here") -> Column:
    results = results or (Row("logits", 0.1, 0.1, 1.0),)
    return Column("onnxruntime", "fp16", how, report=Report("onnxruntime", "fp16", 1, results, rows, {}))


def spoilt(wrong: dict[str, float]):
    """A runner that is right but for these values, which are multiplied."""

    def run(self, reference, names, precision, quantization, images):
        with torch.no_grad():
            right = zip(names, observed_outputs(reference.float(), images, names), strict=True)
            return Outcome("spoilt", "cpu", tuple(value * wrong.get(name, 1) for name, value in right))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_engine_errs_as_verify_says(precision, small_model):
    pytest.importorskip("openvino")
    from conformer_fast.engines.openvino.device import native_precisions

    if precision not in (*native_precisions(), "int8"):
        pytest.skip(f"this CPU does not compute in {precision}")
    batch = images(3, 3, 40, 48)
    chosen = quantization(small_model, precision) if precision == "int8" else None
    found = diff(small_model, batch, [("openvino", precision)], quantization=chosen)
    fast = cf.compile(small_model, backend="openvino", precision=precision, quantization=chosen)
    assert [column.implementation for column in found.columns] == ["reference", "openvino"]
    assert found.columns[1].report == verify(fast, batch, fast.reference, fast.engine, chosen)
    assert found.columns[1].how == fast.reason
    assert found.names == (*BLOCKS, *LOGITS)
    assert (found.images, found.height, found.width) == (3, 40, 48)
    assert found.within


def test_engine_is_what_compile_takes(small_model):
    fast = cf.compile(small_model, precision="fp32")
    column = diff(small_model, images(1, 3, 32, 32), [("engine", "fp32")]).columns[1]
    assert (column.implementation, column.how) == (fast.settings.backend.name, fast.reason)


def test_reference_errs_as_eager_does(small_model):
    found = diff(small_model, images(2, 3, 32, 32), [("reference", "bf16")])
    (only,) = found.columns
    assert [row.error for row in only.rows.values()] == [row.eager_error for row in only.rows.values()]
    assert all(1e-4 < row.error < 3e-2 for row in only.rows.values())
    assert only.report.top1_agreement["sum"] == 1


def test_kernels_and_exported_graph(small_model):
    pytest.importorskip("onnxruntime")
    found = diff(small_model, images(1, 3, 32, 32), [("kernels", "fp16"), ("onnxruntime", "fp16")])
    eager, kernels, graph = found.columns
    assert (eager.how, kernels.how, graph.how) == (
        "PyTorch",
        "Triton's interpreter" if alone.Kernels().slow() else torch.cuda.get_device_name(),
        "the exported graph, not optimized",
    )
    assert (eager.device, graph.device) == ("cpu", "cpu")
    for ran in (kernels, graph):
        assert list(ran.rows) == BLOCKS + LOGITS
        assert all(row.within for row in ran.rows.values())
        assert all(1e-5 < row.error < 3e-3 for row in ran.rows.values())
    assert kernels.rows["2.map"].error != graph.rows["2.map"].error


def test_kernels_in_8_bits_err_as_simulated(small_model):
    chosen = quantization(small_model, "int8")
    several = images(2, 3, 64, 64)  # of a single pixel, values beside ties would decide
    simulated, kernels = diff(small_model, several, [("kernels", "int8")], quantization=chosen).columns
    assert kernels.by_pytorch == 0  # a kernel ran every call
    for name in BLOCKS:
        assert kernels.rows[name].within
        assert kernels.rows[name].error == pytest.approx(simulated.rows[name].error, rel=0.1)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_exported_graph_in_8_bits_errs_as_simulated(precision, small_model):
    pytest.importorskip("onnxruntime")
    chosen = quantization(small_model, precision)
    found = diff(small_model, images(2, 3, 32, 32), [("onnxruntime", precision)], quantization=chosen)
    simulated, graph = found.columns
    assert (simulated.implementation, simulated.how) == ("reference", "PyTorch, simulated")
    for name in BLOCKS:
        assert graph.rows[name].within
        assert graph.rows[name].error == pytest.approx(simulated.rows[name].error, rel=0.35)
        assert simulated.rows[name].error > 4e-3  # it is quantized


def test_images_calibrate_each_precision(small_model):
    """A generator, which can be read once."""
    found = diff(
        small_model,
        images(1, 3, 32, 32),
        [("reference", "int8"), ("reference", "fp8")],
        quantization=(images(2, 3, 32, 32) for _ in range(2)),
    )
    assert [name.precision for name in found.columns] == ["int8", "fp8"]
    assert found.columns[0].rows["3.map"].error < found.columns[1].rows["3.map"].error


def test_columns_of_a_precision_are_neighbors(small_model, monkeypatch):
    monkeypatch.setattr(ONNXRuntime, "run", spoilt({}))
    pairs = [(name, precision) for name in ("onnxruntime", "reference") for precision in ("fp32", "bf16")]
    found = diff(small_model, images(1, 3, 32, 32), pairs)
    assert [(name.implementation, name.precision) for name in found.columns] == [
        ("reference", "fp32"),
        ("onnxruntime", "fp32"),
        ("reference", "bf16"),
        ("onnxruntime", "bf16"),
    ]
    assert {precision: len(columns) for precision, columns in found.by_precision.items()} == {"fp32": 2, "bf16": 2}


@pytest.mark.parametrize("wrong", ["1.map", "2.fcu_down", "2.tokens", "3.fcu_up", "3.map"])
def test_where_error_comes_in(wrong, small_model, monkeypatch):
    monkeypatch.setattr(ONNXRuntime, "run", spoilt({wrong: 1.01}))
    found = diff(small_model, images(1, 3, 32, 32), [("onnxruntime", "fp32")])
    right, column = found.columns
    assert column.fall.name == wrong
    assert column.fall.after == pytest.approx(40, abs=0.1)
    assert column.fall.before > 100
    assert (
        f"onnxruntime fp32: within the bound; {wrong} is the first of 1 over its own; SQNR falls most at {wrong}"
        in (column.summary)
    )
    assert found.within
    assert not right.fall or right.fall.before - right.fall.after < 20
    lines = [line for line in str(found).splitlines() if line.endswith("*")]
    assert [line.split()[0] for line in lines] == [wrong]


def test_wrong_result_is_not_within(small_model, monkeypatch):
    monkeypatch.setattr(ONNXRuntime, "run", spoilt({"trans_logits": -1.0}))
    found = diff(small_model, images(2, 3, 32, 32), [("onnxruntime", "fp32")])
    assert not found.within
    assert found.columns[0].report.within
    assert found.columns[1].report.top1_agreement["trans"] == 0
    assert "onnxruntime fp32: NOT within the bound; trans_logits is the first of 1 over its own" in str(found)


def test_what_cannot_run_says_why(small_model, monkeypatch):
    def missing(*given):
        raise BackendError("it is not installed: pip install it")

    monkeypatch.setattr(ONNXRuntime, "run", missing)
    found = diff(small_model, images(1, 3, 32, 32), [("onnxruntime", "fp32"), ("tensorrt", "fp32")])
    first, second = found.columns[1:]
    assert (first.implementation, first.how, first.report, first.rows, first.fall) == (
        "onnxruntime",
        None,
        None,
        {},
        None,
    )
    assert "backend 'tensorrt' cannot run here" in second.unavailable or torch.cuda.is_available()
    assert "onnxruntime fp32: not run: it is not installed: pip install it" in str(found).splitlines()
    assert found.within


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is interpreted")
def test_interpreter_is_not_trusted_with_bfloat16_nor_assumed(small_model, monkeypatch):
    batch = images(1, 3, 32, 32)
    assert "triton-lang/triton#11584" in diff(small_model, batch, [("kernels", "bf16")]).columns[1].unavailable
    monkeypatch.delenv("TRITON_INTERPRET")
    reason = diff(small_model, batch, [("kernels", "fp16")]).columns[1].unavailable
    assert reason.startswith("no CUDA device")
    assert "TRITON_INTERPRET=1" in reason
    monkeypatch.setattr(alone, "find_spec", lambda package: None)
    assert "triton not installed" in diff(small_model, batch, [("kernels", "fp16")]).columns[1].unavailable


def test_onnx_runtime_without_bfloat16_or_not_installed(small_model, monkeypatch):
    pytest.importorskip("onnxruntime")
    batch = images(1, 3, 32, 32)
    reason = diff(small_model, batch, [("onnxruntime", "bf16")]).columns[1].unavailable
    assert "cannot run this graph" in reason
    assert "\n" not in reason
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reason = diff(small_model, batch, [("onnxruntime", "fp32")]).columns[1].unavailable
    assert reason == 'ONNX Runtime is not installed: pip install "conformer-fast[onnx]"'


def test_calls_that_no_kernel_takes_are_counted(small_model, monkeypatch):
    def refused(plan):
        return lambda *args, **kwargs: replace(plan(*args, **kwargs), unsupported="too hot")

    for name, plan in dispatch.PLANS.items():
        monkeypatch.setitem(dispatch.PLANS, name, refused(plan))
    column = diff(small_model, images(1, 3, 32, 32), [("kernels", "fp32")]).columns[1]
    count, total = map(int, re.search(r"; (\d+) of (\d+) calls by PyTorch: too hot$", column.how).groups())
    assert column.by_pytorch == count == total > 30


def test_model_without_heads(small_config):
    model = lookalikes.fill(Conformer(small_config, features_only=True)).eval()
    found = diff(model, images(1, 3, 32, 32), [("reference", "fp32")])
    assert found.names == tuple(BLOCKS)  # the features are among them
    assert [row.name for row in found.columns[0].report.results] == ["1.map", "2.map", "3.map", "3.tokens"]
    assert "top-1" not in str(found)


def test_pixels_and_the_model_are_left_alone(small_model):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    found = diff(small_model, pixels, [("reference", "fp32")])
    normalized = cf.compile(small_model, backend="reference").as_input(pixels)
    assert found == diff(small_model, normalized, [("reference", "fp32")])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_model.state_dict().items())


def test_json(small_model, monkeypatch):
    monkeypatch.setattr(ONNXRuntime, "run", spoilt({"2.map": math.nan}))
    found = diff(small_model, images(1, 3, 32, 32), [("onnxruntime", "fp32"), ("kernels", "bf16")])
    values = found.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    eager, nan, *_ = values["columns"]
    assert (values["images"], values["height"], values["width"], values["within"]) == (1, 32, 32, True)
    assert (nan["implementation"], nan["precision"], nan["how"], nan["unavailable"]) == (
        "onnxruntime",
        "fp32",
        "spoilt",
        None,
    )
    assert nan["fall"]["name"] == "2.map"
    assert nan["fall"]["after"] is None
    assert next(row for row in nan["report"]["blocks"] if row["name"] == "2.map")["error"] is None
    assert eager["report"]["results"][0]["error"] == found.columns[0].rows["conv_logits"].error


WRONG = {
    "nothing": ([], None, "give pairs such as .*, got none"),
    "implementation": ([("onnx", "fp32")], None, "unknown implementation 'onnx'; choose one of reference, kernels, "),
    "precision": ([("engine", "int4")], None, "unknown precision 'int4'"),
    "uncalibrated": ([("engine", "int8")], None, "takes its ranges from images"),
    "calibration for nothing": ([("reference", "fp32")], [images(1, 3, 32, 32)], "quantization is for int8 and fp8"),
    "another precision": ([("reference", "fp8")], Quantization("int8", {}), "made for int8, not for 'fp8'"),
    "another model": ([("reference", "int8")], Quantization("int8", {"conv_trans_9.up": 1.0}), "conv_trans_9.up"),
}


@pytest.mark.parametrize(("pairs", "quantization", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_say_so(pairs, quantization, message, small_model):
    with pytest.raises(ValueError, match=message):
        diff(small_model, images(1, 3, 32, 32), pairs, quantization=quantization)


@pytest.mark.parametrize(
    ("rows", "fall"),
    [
        ([("1.map", 1e-3, 1e-3), ("2.map", 1e-1, 1e-3), ("3.map", 1e-2, 1e-3)], Fall("2.map", 60.0, 20.0)),
        ([("1.map", 1e-1, 1e-3), ("2.map", 1e-1, 1e-3)], Fall("1.map", 60.0, 20.0)),
        ([("1.map", 1e-3, 1e-3), ("2.map", 1e-3, 1e-3)], None),
        ([("1.map", 1e-2, 1e-2), ("1.tokens", 1e-4, 1e-4), ("2.map", 1e-2, 0.1), ("2.tokens", 1e-3, 0.1)], "2.tokens"),
        ([("1.map", 1e-1, 1e-5), ("2.map", math.nan, 1e-3), ("3.map", math.nan, 1e-3)], "2.map"),
        ([("1.map", 0.0, 0.0), ("2.map", 0.0, 0.0), ("3.map", 1e-3, 0.0)], "3.map"),
        ([("1.map", math.nan, math.nan), ("2.map", 1e-1, 0.1), ("3.map", 1.0, 0.1)], "3.map"),
        ([], None),
    ],
    ids=str,
)
def test_fall(rows, fall):
    found = column(*(Row(name, error, eager, math.inf) for name, error, eager in rows)).fall
    if isinstance(fall, str):
        assert found.name == fall
    elif fall:
        assert (found.name, found.before, found.after) == (
            fall.name,
            pytest.approx(fall.before),
            pytest.approx(fall.after),
        )
    else:
        assert found is None


def test_fall_to_what_is_not_finite_reads_so():
    assert str(Fall("2.map", 60.0, math.nan)) == "2.map is the first that is not finite"
    assert str(Fall("2.map", 60.04, 20.0)) == "SQNR falls most at 2.map, from 60.0 to 20.0 dB"
