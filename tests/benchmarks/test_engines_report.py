"""Real TensorRT-RTX engines of the published sizes, built without a GPU, and the report of them."""

import json
import re
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch

import conformer_fast as cf
from benchmarks import render
from conformer_fast.engines.tensorrt import flavors

pytest.importorskip("onnx")
engines_report = pytest.importorskip("benchmarks.engines_report")
pytestmark = pytest.mark.skipif(
    not any(map(find_spec, flavors.MODULES["tensorrt-rtx"])), reason="needs TensorRT-RTX to build with"
)
Engine, ENGINES = engines_report.Engine, engines_report.ENGINES
# The smallest variant stands for the larger ones where building takes long: in 8 bits, and for base-p16.
BUILT = [
    engine
    for engine in ENGINES
    if engine.variant == "tiny-p16" or (engine.precision == "fp16" and engine.variant != "base-p16")
]

# What a plan holds beside its graph's weights, kernels above all. Measured: 8 to 11 MB, in 8 bits, where almost every
# product has a kernel of its own, 24 MB.
KERNELS = {"fp16": 16e6, "bf16": 16e6, "int8": 36e6, "fp8": 36e6}


class Plan(NamedTuple):
    """What is asked of a plan, which itself is too large to keep. attentions: its fused attention kernels, by name."""

    start: bytes
    attentions: int
    row: dict


def ids(engine) -> str:
    targets = "every target" if engine.targets == engines_report.EVERY_TARGET else "+".join(engine.targets)
    sizes = ", sizes" if engine.shapes == engines_report.SIZES else ""
    return f"{engine.variant} {engine.precision} {targets}{sizes}"


@pytest.fixture(scope="module")
def plans():
    found = {}
    for engine, (plan, row) in zip(BUILT, engines_report.build(flavors.get_flavor("tensorrt-rtx"), BUILT), strict=True):
        found[engine] = Plan(plan[:4], len(re.findall(rb"_gemm_mha_v2(?!\w)", plan)), row)
    return found


def test_the_report_has_every_engine_that_is_promised():
    built = {(engine.variant, engine.precision, engine.targets) for engine in ENGINES}
    assert {(variant, "fp16", ("sm86",)) for variant in cf.VARIANTS} < built
    for variant in ("tiny-p16", "small-p16"):
        assert (variant, "int8", ("sm86",)) in built
        assert (variant, "fp8", ("sm89", "sm120")) in built
    assert any(len(engine.targets) > 2 for engine in ENGINES)
    assert any(engine.shapes.height[0] < engine.shapes.height[2] for engine in ENGINES)


@pytest.mark.slow
@pytest.mark.parametrize("engine", BUILT, ids=ids)
def test_the_engine_is_built(engine, plans, record_property):
    plan = plans[engine]
    for name in ("plan_bytes", "seconds"):
        figure = plan.row[name] / 1e6 if name == "plan_bytes" else plan.row[name]
        name = {"plan_bytes": "plan, MB", "seconds": "built in, s"}[name]
        record_property("table", ("TensorRT-RTX engines, without a GPU", ids(engine), name, figure))
    assert plan.start == b"vtrt"
    assert 0 < plan.row["plan_bytes"] - plan.row["onnx_bytes"] < KERNELS[engine.precision]


@pytest.mark.slow
@pytest.mark.parametrize("engine", BUILT, ids=ids)
def test_attention_is_one_kernel_in_every_block(engine, plans):
    """Although its softmax is fp32 between casts. The kernel's own name, apart from longer ones that begin like it,
    stands in a plan once for each."""
    assert plans[engine].attentions == cf.VARIANTS[engine.variant].depth


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted({engine.variant for engine in BUILT}))
def test_16_bits_take_little_more_than_half(variant, plans):
    """1.66 to 1.86 times smaller than the weights in fp32; exactly half, less the kernels, would be 2."""
    with torch.device("meta"):
        model = cf.create_model(variant)
    fp32 = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert fp32 / plans[Engine(variant, "fp16", ("sm86",))].row["plan_bytes"] > 1.6


@pytest.mark.slow
def test_8_bits_take_less_than_16(plans):
    """The graphs little more than half, as the heads stay; the plans have more kernels: 0.89, of small-p16 0.77."""
    fp16 = plans[Engine("tiny-p16", "fp16", ("sm86",))].row
    for engine in (Engine("tiny-p16", "int8", ("sm86",)), Engine("tiny-p16", "fp8", ("sm89", "sm120"))):
        row = plans[engine].row
        assert row["onnx_bytes"] < 0.56 * fp16["onnx_bytes"]
        assert row["plan_bytes"] < 0.95 * fp16["plan_bytes"]


@pytest.mark.slow
def test_more_targets_cost_nothing(plans):
    """A plan holds what every target understands; the GPU's own code is made where it runs."""
    one, four = (
        plans[Engine("small-p16", "fp16", targets)].row["plan_bytes"]
        for targets in (("sm86",), engines_report.EVERY_TARGET)
    )
    assert four == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_main_writes_what_the_document_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines_report, "ENGINES", (Engine("digits", "int8", ("sm86", "sm120"), engines_report.SIZES),))
    engines_report.main(tmp_path / "engines.json")
    report = json.loads((tmp_path / "engines.json").read_text())
    (row,) = report["engines"]
    rtx = flavors.get_flavor("tensorrt-rtx")
    assert (report["flavor"], report["version"]) == ("tensorrt-rtx", rtx.version)
    assert row["plan_bytes"] > row["onnx_bytes"] > 0
    assert str(row["plan_bytes"]) in capsys.readouterr().out

    monkeypatch.setattr(render, "ENGINES", tmp_path / "engines.json")
    text = render.render("before\n<!-- engines -->\nold\n<!-- /engines -->\nafter\n")
    assert "old" not in text
    figures = f"{row['onnx_bytes'] / 1e6:.1f} | {row['plan_bytes'] / 1e6:.1f} | {row['seconds']:.1f}"
    assert f"\n| digits int8 | sm86, sm120 | 1, 8, 32 | 160, 224, 320 | {figures} |\n" in text
    assert f"Built without a GPU by tensorrt-rtx {rtx.version} on {report['threads']} threads of" in text
    assert render.render(text) == text
