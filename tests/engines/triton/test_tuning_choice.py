"""Offline tuning: which candidate is taken, and which are dropped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from kernel_checks import DEVICE
from torch import Tensor, nn
from tuning_samples import BAD, FAST, GPU, RULE, SLOW, FakeTimer, Net

from conformer_fast.engines.triton import tuning
from conformer_fast.engines.triton.tuning import Tuned, fastest, save, tune
from conformer_fast.inference import ops
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.dispatch import PYTORCH
from conformer_fast.kernels.launch import Plan
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("rounds", "choice"),
    [
        ({RULE: [2, 2, 2], FAST: [1, 1, 1], SLOW: [3, 3, 3]}, FAST),
        ({RULE: [2, 2, 2], FAST: [2, 2, 2]}, RULE),
        ({RULE: [2, 2, 2], PYTORCH: [1, 1, 1]}, PYTORCH),
        ({FAST: [3, 3, 3], PYTORCH: [2, 2, 2]}, PYTORCH),  # the rule's tile failed
        ({RULE: [2.0, 2.0, 2.0], FAST: [1.99, 1.99, 1.99]}, RULE),  # less than is worth a change
        ({RULE: [2, 2, 2, 2, 2], FAST: [1, 1, 1, 3, 3]}, RULE),  # not in round after round
        ({RULE: [2, 4, 6, 8, 10], FAST: [1.8, 3.6, 5.4, 7.2, 9.0]}, FAST),  # the clock falls, the ratio stays
        ({RULE: [2, 2, 2, 2, 2], FAST: [1, 1, 1, 1, 9]}, FAST),  # one disturbance
    ],
)
def test_the_fastest_is_taken_if_it_clearly_is(rounds, choice):
    assert fastest(rounds, RULE) == choice


@pytest.fixture
def plan(monkeypatch) -> Callable[..., None]:
    """Puts in place of conv1x1's a plan with these tiles, each run by a function of PyTorch's result."""

    def put(tiles: dict[Tile, Callable[[Tensor], Tensor]]) -> None:
        def plan_of(*args, **kwargs):
            eager = CF.conv1x1(*args, **kwargs)
            name = f"fake M{args[0].numel()} N{len(args[1])}"
            return Plan(name, None, tuple(tiles), lambda tile: tiles[tile](eager))

        monkeypatch.setitem(dispatch.PLANS, "conv1x1", plan_of)

    return put


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def run(_: Tensor) -> Tensor:
        raise error

    return run


def same(eager: Tensor) -> Tensor:
    return eager.clone()


def first_of(seconds: Mapping[Any, float] = {}, dtype=torch.float16) -> Tuned:
    model = Net(dtype)
    return next(iter(tune(model, tuning.random_images(model, 1, 4, 4), timer=FakeTimer(seconds)).values()))


def test_the_fastest_of_the_good_is_taken(plan):
    plan({RULE: same, FAST: same, SLOW: same})
    tuned = first_of({FAST: 0.5, SLOW: 2.0})
    assert (tuned.rule, tuned.choice, tuned.gain) == (RULE, FAST, 2.0)
    assert tuned.seconds == {RULE: 1.0, FAST: 0.5, SLOW: 2.0, PYTORCH: 1.0}
    assert first_of({PYTORCH: 0.5}).choice == PYTORCH


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (raising(RuntimeError("out of resource: shared memory\nmore")), "RuntimeError: out of resource: shared memory"),
        (raising(IndexError("map::at")), "IndexError: map::at"),
        (lambda eager: eager * 1.1, "its relative error is 1.0e-01, at most"),
        (lambda eager: torch.full_like(eager, torch.nan), "its relative error is nan"),
    ],
    ids=["cannot be launched", "compiler", "inexact", "NaN"],
)
def test_a_candidate_that_fails_is_dropped_and_says_why(plan, run, why):
    plan({RULE: same, BAD: run, FAST: same})
    tuned = first_of({BAD: 0.1, FAST: 0.5})
    assert tuned.choice == FAST
    assert [*tuned.dropped] == [BAD]
    assert tuned.dropped[BAD].startswith(why)
    assert "\n" not in tuned.dropped[BAD]
    assert BAD not in tuned.seconds
    plan({BAD: run, FAST: same})  # now it is the rule's
    tuned = first_of({PYTORCH: 0.5})
    assert (tuned.rule, tuned.choice, tuned.gain) == (BAD, PYTORCH, None)
    assert "failed" in str(tuned)
    plan({BAD: run})
    assert first_of().choice == PYTORCH


def test_memory_is_poisoned_before_it_goes_to_a_candidate(plan, monkeypatch):
    freed, full_like = [], torch.full_like

    def keeping(*args):
        freed.append(full_like(*args))
        return freed[-1]

    monkeypatch.setattr(torch, "full_like", keeping)
    plan({RULE: same, BAD: lambda eager: freed[-1]})  # gets the memory freed last, and writes nothing
    assert first_of().dropped[BAD].startswith("its relative error is nan")


def test_errors_are_allowed_as_pytorch_makes_them(plan):
    plan({RULE: lambda eager: eager * (1 + 1e-3)})
    assert first_of(dtype=torch.bfloat16).dropped == {}
    assert [*first_of(dtype=torch.float32).dropped] == [RULE]


def test_without_room_to_measure_the_rule_stays(plan):
    plan({RULE: same, BAD: raising(torch.OutOfMemoryError("CUDA out of memory"))})
    tuned = first_of()
    assert (tuned.choice, tuned.seconds, tuned.gain) == (RULE, {}, None)
    assert "room" in str(tuned)
    assert json.loads(save(GPU, [tuned]).read_text())["choices"] == {}


def test_values_that_overflow_are_not_judged():
    model = Net()
    model.stem.weight.mul_(1e4)
    first = next(iter(tune(model, tuning.random_images(model, 1, 4, 4) * 100, timer=FakeTimer()).values()))
    assert (first.choice, first.seconds) == (first.rule, {})
    assert "finite" in first.dropped[first.rule]


def test_an_error_of_pytorch_itself_is_raised(plan):
    class Broken(nn.Module):
        def forward(self, images):
            return ops.conv1x1(images, torch.ones(3, 7, device=DEVICE), torch.ones(3, device=DEVICE))

    with pytest.raises(RuntimeError, match="shapes"):
        tune(Broken(), torch.ones(1, 2, 2, 5, device=DEVICE), timer=FakeTimer())
