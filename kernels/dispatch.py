"""Which implementation runs a call: a tuned table's choice for this GPU, else the tile rule; PyTorch where a kernel
cannot, or was measured to be slower."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .attention import plan_attention
from .chips import chip_of
from .conv1x1 import plan_conv1x1, plan_lateral
from .conv1x1_pair import plan_conv1x1_pair
from .conv3x3 import plan_conv3x3, plan_conv3x3_pool
from .fcu_down import plan_fcu_down
from .fcu_up import plan_fcu_up
from .heads import plan_heads
from .launch import Plan
from .linear import plan_linear
from .linear_norm import plan_linear_norm
from .patch_embed import plan_patch_embed
from .pool import plan_pool
from .stem import plan_stem
from .tiles import Tile

PLANS: dict[str, Callable[..., Plan]] = {
    "attention": plan_attention,
    "conv1x1": plan_conv1x1,
    "conv1x1_pair": plan_conv1x1_pair,
    "conv3x3": plan_conv3x3,
    "conv3x3_pool": plan_conv3x3_pool,
    "fcu_down": plan_fcu_down,
    "fcu_up": plan_fcu_up,
    "heads": plan_heads,
    "lateral": plan_lateral,
    "linear": plan_linear,
    "linear_norm": plan_linear_norm,
    "patch_embed": plan_patch_embed,
    "pool": plan_pool,
    "stem": plan_stem,
}

PYTORCH = "pytorch"  # in a table: what PyTorch calls (cuBLAS, cuDNN) is faster than every tile
TABLES = Path(__file__).parent / "tuned"
LIMIT_BYTES = 16 << 20  # of a table; all models in all precisions take some million
Choice = Tile | str


@dataclass(frozen=True)
class Call:
    """What became of one call of an operation: the tile that ran it, or PYTORCH, and why.

    pytorch() computes the same with PyTorch. Both it and the plan hold the call's tensors.
    """

    operation: str
    plan: Plan
    pytorch: partial[Any]  # its `args` and `keywords` are the call's
    choice: Choice
    reason: str

    def run(self, choice: Choice) -> Any:
        return self.plan.launch(choice) if isinstance(choice, Tile) else self.pytorch()


_decide: ContextVar[Callable[[Call], Choice] | None] = ContextVar("decide", default=None)
_overrides: dict[str, dict[str, Choice]] = {}


def run(operation: str, pytorch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `operation` by its kernel or, with the same arguments, by `pytorch`."""
    plan = PLANS[operation](*args, **kwargs)
    device = next(value.device for value in args if isinstance(value, Tensor))
    choice, reason = choose(plan, chip_of(device).name)
    call = Call(operation, plan, partial(pytorch, *args, **kwargs), choice, reason)
    decide = _decide.get()
    return call.run(decide(call) if decide else choice)


def choose(plan: Plan, gpu: str) -> tuple[Choice, str]:
    """What runs a call on this GPU, and why."""
    if plan.unsupported:
        return PYTORCH, plan.unsupported
    tuned = table(gpu).get(plan.problem)
    if tuned is None:
        return plan.tiles[0], "the rule's choice"
    if tuned != PYTORCH and tuned not in plan.tiles:
        return plan.tiles[0], f"the rule's choice: the kernel no longer has the tuned {tuned}"
    return tuned, f"measured fastest on {gpu}"


@contextmanager
def deciding(decide: Callable[[Call], Choice]) -> Iterator[None]:
    """Every call made inside is shown to `decide`, which says what runs it."""
    token = _decide.set(decide)
    try:
        yield
    finally:
        _decide.reset(token)


@contextmanager
def calls() -> Iterator[list[Call]]:
    """Collects what becomes of every call made inside."""
    made: list[Call] = []

    def keep(call: Call) -> Choice:
        made.append(call)
        return call.choice

    with deciding(keep):
        yield made


def table(gpu: str) -> Mapping[str, Choice]:
    """The tuned choices by problem: those that ship with the package and, before them, those of `use_table`."""
    return _overrides.get(gpu) or _shipped(gpu)


def use_table(gpu: str, choices: Mapping[str, Choice]) -> None:
    """Prefers these choices to the shipped ones from now on, in this process."""
    _overrides[gpu] = {**_shipped(gpu), **choices}


@cache
def _shipped(gpu: str) -> Mapping[str, Choice]:
    file = TABLES / file_name(gpu)
    return read_table(file) if file.exists() else {}


def file_name(gpu: str) -> str:
    """The name of a GPU's table file."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", gpu).strip("-.") + ".json"


def read_table(file: Path) -> dict[str, Choice]:
    """The choices in a table's file: {"choices": {problem: [m, n, k, warps, stages] or "pytorch"}}.

    Raises ValueError, naming the file and the entry, for anything else.
    """
    return choices_in(file.read_bytes(), str(file))


def choices_in(content: bytes, where: str) -> dict[str, Choice]:
    """The choices in a table's content, as `read_table` says. Raises ValueError, naming `where`, for anything else."""
    if len(content) > LIMIT_BYTES:
        raise ValueError(f"{where} is no table of tuned choices: it has {len(content):,} bytes of {LIMIT_BYTES:,}")
    try:
        entries = json.loads(content, parse_constant=_no_number)["choices"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where} is no table of tuned choices: {type(error).__name__}: {error}") from error
    return {problem: choice_of(entry, f"{where}: {problem[:80]!r}") for problem, entry in entries}


def choice_of(entry: Any, where: str) -> Choice:
    """A choice as tables store it: [m, n, k, warps, stages] or "pytorch". Raises ValueError, naming `where`, else."""
    if entry == PYTORCH:
        return PYTORCH
    if isinstance(entry, list) and len(entry) == len(Tile._fields) and all(type(side) is int for side in entry):
        return Tile(*entry)
    shown = repr(entry)[:80]
    raise ValueError(f"{where} has the choice {shown}; give {Tile._fields} or {PYTORCH!r}")


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
