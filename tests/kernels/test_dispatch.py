"""Which implementation runs a call: the table's choice, else the rule's; PyTorch where a kernel cannot run it."""

from __future__ import annotations

import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from kernel_checks import Sample, make, shape

from conformer_fast.inference import ops
from conformer_fast.kernels import dispatch, launch
from conformer_fast.kernels.chips import CHIPS, assuming, chip_of
from conformer_fast.kernels.dispatch import PYTORCH, choose
from conformer_fast.kernels.launch import Plan
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF

RULE, OTHER, GONE = Tile(64, 64, 32, 4, 3), Tile(32, 64, 32, 4, 3), Tile(3, 5, 7, 1, 1)
PLAN = Plan("linear fp16 M6 N5 K4", None, (RULE, OTHER), lambda tile: f"kernel {tile}")
X, WEIGHT, BIAS = torch.ones(6, 4), torch.ones(5, 4), torch.ones(5)


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path) -> str:
    """The name of the GPU here: one that no other test and no shipped table knows."""

    def renamed(device):
        chip = chip_of(device)
        return replace(chip, name=f"{chip.name} of {tmp_path.name}")

    monkeypatch.setattr(dispatch, "chip_of", renamed)
    monkeypatch.setattr(dispatch, "TABLES", tmp_path)
    return renamed(X.device).name


@pytest.fixture
def plan(monkeypatch):
    """Puts a plan in place of linear's."""

    def put(plan: Plan) -> None:
        monkeypatch.setitem(dispatch.PLANS, "linear", lambda *args, **kwargs: plan)

    return put


def run_linear():
    """What runs a call of linear, by the plan or by PyTorch."""
    return dispatch.run("linear", lambda *args, **kwargs: ("pytorch", args, kwargs), X, WEIGHT, bias=BIAS)


BY_PYTORCH = ("pytorch", (X, WEIGHT), {"bias": BIAS})


def test_every_operator_has_a_plan_with_the_arguments_of_its_function():
    assert set(dispatch.PLANS) == set(ops.OPS) - ops.MOVES
    for operation, plan in dispatch.PLANS.items():
        assert [*inspect.signature(plan).parameters] == [*inspect.signature(getattr(CF, operation)).parameters]


def test_without_an_entry_the_rule_decides(plan, gpu):
    plan(PLAN)
    assert choose(PLAN, gpu) == (RULE, "the rule's choice")
    assert run_linear() == f"kernel {RULE}"


def test_an_entry_decides_for_its_gpu_and_problem_alone(plan, gpu):
    plan(PLAN)
    dispatch.use_table(gpu, {PLAN.problem: OTHER})
    assert choose(PLAN, gpu) == (OTHER, f"measured fastest on {gpu}")
    assert choose(PLAN, "another GPU")[0] == RULE
    assert choose(replace(PLAN, problem="linear fp16 M7 N5 K4"), gpu)[0] == RULE
    assert run_linear() == f"kernel {OTHER}"
    with assuming(CHIPS[80]):
        assert run_linear() == f"kernel {RULE}"


def test_an_entry_may_say_pytorch(plan, gpu):
    plan(PLAN)
    dispatch.use_table(gpu, {PLAN.problem: PYTORCH})
    assert choose(PLAN, gpu) == (PYTORCH, f"measured fastest on {gpu}")
    assert run_linear() == BY_PYTORCH


def test_a_tile_that_the_kernel_does_not_offer_is_not_launched(plan, gpu):
    plan(PLAN)
    dispatch.use_table(gpu, {PLAN.problem: GONE})
    choice, reason = choose(PLAN, gpu)
    assert choice == RULE
    assert str(GONE) in reason
    assert run_linear() == f"kernel {RULE}"


def test_what_the_kernel_cannot_take_goes_to_pytorch_whatever_the_table_says(plan, gpu):
    unsupported = replace(PLAN, unsupported="the kernel has no float64")
    plan(unsupported)
    dispatch.use_table(gpu, {PLAN.problem: OTHER})
    assert choose(unsupported, gpu) == (PYTORCH, "the kernel has no float64")
    assert run_linear() == BY_PYTORCH


def test_float64_runs_by_pytorch_and_says_why():
    arguments = make(Sample("plain", "linear", (shape(6, 4), shape(5, 4), shape(5))), torch.float64)
    with ops.on_kernels(), dispatch.calls() as made:
        out = ops.linear(*arguments)
    assert torch.equal(out, CF.linear(*arguments))
    assert made[0].choice == PYTORCH
    assert "float64" in made[0].reason


def calls_and_launches() -> tuple[int, int]:
    """How many calls, and how many launches, one call of an operator is; on tensors without data."""
    with dispatch.calls() as made, launch.recording() as launched:
        out = torch.ops.conformer_fast.linear(*(torch.empty(sizes, device="meta") for sizes in ((3, 8), (5, 8), (5,))))
    assert (out.device.type, out.shape) == ("meta", (3, 5))
    return len(made), len(launched)


def test_another_thread_calls_operators_as_they_are():
    with ThreadPoolExecutor(1) as pool, ops.on_kernels():
        assert pool.submit(calls_and_launches).result() == (0, 0)
        assert calls_and_launches() == (1, 1)
    assert calls_and_launches() == (0, 0)


def test_calls_are_collected_with_what_ran_them_inside_and_only_there(plan, gpu):
    plan(PLAN)
    with dispatch.calls() as outer:
        run_linear()
        with dispatch.calls() as inner:
            run_linear()
        dispatch.use_table(gpu, {PLAN.problem: PYTORCH})
        run_linear()
    run_linear()
    assert len(inner) == 1
    assert [(call.operation, call.choice) for call in outer] == [("linear", RULE), ("linear", PYTORCH)]
    assert outer[0].run(OTHER) == f"kernel {OTHER}"
    assert outer[0].run(PYTORCH) == BY_PYTORCH
    assert (outer[0].pytorch.args, outer[0].pytorch.keywords) == BY_PYTORCH[1:]


def test_decisions_can_be_taken_over(plan):
    plan(PLAN)
    seen = []

    def decide(call):
        seen.append(call.choice)
        return OTHER

    with dispatch.deciding(decide):
        assert run_linear() == f"kernel {OTHER}"
    assert seen == [RULE]
    assert run_linear() == f"kernel {RULE}"
    with pytest.raises(ZeroDivisionError), dispatch.deciding(lambda call: 1 // 0):
        run_linear()
    assert run_linear() == f"kernel {RULE}"


def write(file, table) -> None:
    file.write_text(table if isinstance(table, str) else json.dumps(table))


def test_a_shipped_table_counts_until_other_choices_are_used(tmp_path, gpu):
    write(tmp_path / dispatch.file_name(gpu), {"choices": {PLAN.problem: [*OTHER], "elsewhere": "pytorch"}})
    assert choose(PLAN, gpu)[0] == OTHER
    dispatch.use_table(gpu, {PLAN.problem: PYTORCH})
    assert choose(PLAN, gpu)[0] == PYTORCH
    assert dispatch.table(gpu)["elsewhere"] == PYTORCH


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3.json"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb.json"),
        ("Tesla V100/PCIe (a)", "Tesla-V100-PCIe-a.json"),
        ("../../etc", "etc.json"),
    ],
)
def test_a_gpus_name_makes_a_file_name(given, name):
    assert dispatch.file_name(given) == name


@pytest.mark.parametrize(
    "table",
    [
        "",
        "[]",
        "\x00",
        {},
        {"choices": None},
        {"choices": [1, 2]},
        *(
            {"choices": {"linear": entry}}
            for entry in ["cublas", [64, 64, 32, 4], [64, 64, 32, 4, 2.0], [64, 64, 32, 4, True], 3, None, {"m": 64}]
        ),
    ],
    ids=str,
)
def test_a_damaged_table_is_an_error_that_names_the_file(tmp_path, table):
    file = tmp_path / "table.json"
    write(file, table)
    with pytest.raises(ValueError, match=r"table\.json"):
        dispatch.read_table(file)


def test_bytes_that_are_no_text_are_a_damaged_table(tmp_path):
    file = tmp_path / "table.json"
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"table\.json"):
        dispatch.read_table(file)
