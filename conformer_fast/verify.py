"""How far a compiled model is from the reference, and whether that is within what its precision allows.

The measure is taken against the reference in float64. The bound is not a number picked by hand: the compiled model may
err twice as much as PyTorch's own eager run of the reference in the same precision, plus a floor for values on which
eager happens to be exact.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .backends import DTYPES
from .config import ConformerConfig
from .cuda_graph import tf32_as_asked
from .fast import Engine, FastConformer
from .fuse import LOGITS
from .model import Conformer
from .outputs import observed_outputs

ALLOWANCE = 2.0  # times eager's own error
FLOOR = {  # relative error that is always allowed: about one rounding of the precision
    "fp32": 1e-6,  # some roundings of 6e-8, which add up
    "bf16": 4e-3,
    "fp16": 5e-4,
}


@dataclass(frozen=True)
class Row:
    """One compared tensor. error and eager_error are ||x - reference|| / ||reference||, of the compiled model and of
    PyTorch in the same precision, NaN where it has none and there is no bound; sqnr_db is -20 log10(error)."""

    name: str
    error: float
    eager_error: float
    bound: float

    @property
    def sqnr_db(self) -> float:
        return -20 * math.log10(self.error) if self.error else math.inf

    @property
    def within(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        figures = f"{self.error:>10.2e}{self.sqnr_db:>9.1f}{self.eager_error:>10.2e}{self.bound:>10.2e}"
        return f"{self.name:<16}{figures}{'' if self.within else '  over'}"


@dataclass(frozen=True)
class Report:
    """results: what the model returns. blocks: both branches and coupling units inside, measured on an engine of the
    same graph that returns them too; a loaded model has none. top1_agreement: share of images whose highest score
    agrees with the reference's, for each head and their sum; empty without heads."""

    backend: str
    precision: str
    images: int
    results: tuple[Row, ...]
    blocks: tuple[Row, ...]
    top1_agreement: dict[str, float]

    @property
    def within(self) -> bool:
        """Whether everything the model returns is within its bound."""
        return all(row.within for row in self.results)

    @property
    def verdict(self) -> str:
        over = (row for row in self.results if not row.within)
        worst = next(over, max(self.results, key=lambda row: row.error / row.bound))
        if worst.bound == math.inf:
            largest = max(self.results, key=lambda row: row.error)
            return f"no bound is known for {self.precision}: {largest.name} errs by {largest.error:.2g}"
        figures = f"{worst.name} errs by {worst.error:.2g}, {worst.error / worst.bound:.2f} of its bound"
        if self.within:
            return f"within the bound for {self.precision}: {figures}"
        where = "; see where the blocks above go over" if self.blocks else "; give it other images"
        return f"NOT within the bound for {self.precision}: {figures}{where}, or use fp32"

    def to_dict(self) -> dict:
        """The report as JSON values; a figure that is not finite is None."""
        figures = json.loads(json.dumps(asdict(self)), parse_constant=lambda constant: None)
        return {**figures, "within": self.within, "verdict": self.verdict}

    def __str__(self) -> str:
        lines = [
            f"{self.backend} {self.precision} against the reference in float64, {self.images} image(s)",
            f"{'':<16}{'error':>10}{'SQNR dB':>9}{'eager':>10}{'bound':>10}",
            *map(str, (*self.blocks, *self.results)),
        ]
        if self.top1_agreement:
            shares = ", ".join(f"{head} {share:.1%}" for head, share in self.top1_agreement.items())
            lines.append(f"top-1 agreement: {shares}")
        return "\n".join([*lines, self.verdict])


def verify(
    fast: FastConformer,
    images: Tensor,
    reference: Conformer,
    engine: Callable[[Sequence[str]], Engine] | None = None,
) -> Report:
    """Measures `fast` on images (B, in_channels, H, W). It runs the reference in float64 where they are, slowly.

    reference: the model that `fast` was made from, in fp32
    engine:    makes an engine like that of `fast` with other outputs; without it, nothing is known of the blocks

    Precisions of 8 bits have no bound, as PyTorch does not compute in them: their errors are only reported.
    """
    precision = fast.settings.precision
    images = fast.as_input(images)
    ours = dict(zip(fast.outputs, fast.run(images), strict=True))
    inner = _inner_names(reference.config) if engine else ()
    inside = dict(zip(inner, engine(inner)(images), strict=True)) if engine else {}
    names = tuple({**ours, **inside})
    exact = _run(reference, torch.float64, images, names)
    eager = _run(reference, DTYPES[precision], images, names) if precision in DTYPES else {}

    def rows(values: dict[str, Tensor]) -> tuple[Row, ...]:
        return tuple(_row(name, value, exact[name], eager.get(name), precision) for name, value in values.items())

    agreement = _top1_agreement(ours, exact) if set(LOGITS) <= set(ours) else {}
    return Report(fast.settings.backend, precision, len(images), rows(ours), rows(inside), agreement)


def _inner_names(config: ConformerConfig) -> tuple[str, ...]:
    """Both branches and coupling units of each block, in the order in which they are computed."""
    coupled = ("fcu_down", "tokens", "fcu_up", "map")
    return ("1.tokens", "1.map", *(f"{block}.{kind}" for block in range(2, config.depth + 1) for kind in coupled))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """||value - expected|| / ||expected|| in float64, where `expected` is: 0 if both are all zeros, NaN if any value is
    not finite."""
    expected = expected.double()
    smallest = torch.finfo(torch.float64).tiny
    error = ((value.to(expected) - expected).norm() / expected.norm().clamp(min=smallest)).item()
    return error if math.isfinite(error) else math.nan


def _row(name: str, value: Tensor, exact: Tensor, eager: Tensor | None, precision: str) -> Row:
    if eager is None:
        return Row(name, relative_error(value, exact), math.nan, math.inf)
    eager_error = relative_error(eager, exact)
    return Row(name, relative_error(value, exact), eager_error, ALLOWANCE * eager_error + FLOOR[precision])


def _run(reference: Conformer, dtype: torch.dtype, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    model = copy.deepcopy(reference).to(images.device, dtype)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False), tf32_as_asked(dtype):
        return dict(zip(names, observed_outputs(model, images.to(dtype), names), strict=True))


def _top1_agreement(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    heads = {"conv": LOGITS[:1], "trans": LOGITS[1:], "sum": LOGITS}
    agreement = {}
    for head, names in heads.items():
        mine, true = (torch.stack([scores[name].double() for name in names]).sum(0) for scores in (ours, exact))
        agreement[head] = (mine.argmax(-1) == true.argmax(-1)).double().mean().item()
    return agreement
