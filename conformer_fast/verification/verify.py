"""How far a compiled model is from the reference, and whether that is within what its precision allows.

The measure is taken against the reference in float64. The bound is not a number picked by hand: the compiled model may
err twice as much as PyTorch's own run of the reference in the same precision, plus a rounding for values on which that
happens to be exact. PyTorch computes in 8 bits too: the inference model, quantized with the same scales, run by
functional.py among fp32. A model that PyTorch itself cannot compute in this precision, as with ranges of unlike images,
is told by an absolute floor (floors.py): whatever a model returns must be above it, and the classes agree so often.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..engines.base import Engine
from ..engines.module import EngineModule
from ..errors import ArgumentError
from ..inference.lower import lower
from ..inference.quantization import Quantization
from ..model.config import ConformerConfig
from ..model.distance import ALLOWANCE, FLOOR, relative_error, sqnr_db, top1_agreement
from ..model.outputs import LOGITS, SUM, observed_outputs
from ..model.precision import DTYPES, FORMATS, tf32_as_asked
from ..model.reference import Conformer
from ..tables import Column, Table
from .floors import FLOORS

ROWS = Table(
    Column(width=16),
    Column("error", ".2e", 8),
    Column("SQNR dB", ".1f"),
    Column("eager", ".2e", 8),
    Column("bound", ".2e", 8),
    Column(),
)


@dataclass(frozen=True)
class Row:
    """One compared tensor. error and eager_error are ||x - reference|| / ||reference||, of the compiled model and of
    PyTorch in the same precision, NaN where that is not known; sqnr_db is -20 log10(error). bound: of the error; of a
    result never above the floor, and of a value inside infinite where eager_error is not known."""

    name: str
    error: float
    eager_error: float
    bound: float

    @property
    def sqnr_db(self) -> float:
        return sqnr_db(self.error)

    @property
    def within(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        over = "" if self.within else "over"
        eager = None if math.isnan(self.eager_error) else self.eager_error
        return ROWS.line(self.name, self.error, self.sqnr_db, eager, self.bound, over)


@dataclass(frozen=True)
class Report:
    """results: what the model returns. blocks: both branches and coupling units inside, measured on an engine of the
    same graph that returns them too; a loaded model has none. top1_agreement: share of images whose highest score
    agrees with the reference's, for each head that is returned and, last, their sum; empty without heads."""

    backend: str
    precision: str
    images: int
    results: tuple[Row, ...]
    blocks: tuple[Row, ...]
    top1_agreement: dict[str, float]

    @property
    def within(self) -> bool:
        """Whether everything the model returns is within its bound, and its classes agree often enough."""
        agrees = FLOORS[self.precision].agrees(self._agreement, self.images)
        return agrees and all(row.within for row in self.results)

    @property
    def _agreement(self) -> float:
        """Of the sum of both heads, or of the one that is returned; 1 without heads."""
        return [1.0, *self.top1_agreement.values()][-1]

    @property
    def verdict(self) -> str:
        floor = FLOORS[self.precision]
        over = (row for row in self.results if not row.within)
        worst = next(over, max(self.results, key=lambda row: row.error / row.bound))
        figures = f"{worst.name} errs by {worst.error:.2g}, {worst.error / worst.bound:.2f} of its bound"
        if math.isnan(worst.error):
            figures = f"{worst.name} has values that are not finite"
        if worst.bound == floor.error:
            figures += f", the floor of {floor.sqnr_db:g} dB"
            if math.isnan(worst.eager_error):
                figures += ", as its quantization is not known here"
        if self.within:
            return f"within the bound for {self.precision}: {figures}"
        if worst.within:
            share = f"{self._agreement:.1%} of {self.images} images"
            figures = f"the class agrees for {share}, at least {floor.agreement:.0%} should"
        where = "; see where the blocks above go over" if self.blocks else "; give it other images"
        if self.precision in FORMATS:
            where += ", calibrate with pictures like those that the model sees"
        return f"NOT within the bound for {self.precision}: {figures}{where}, or use fp32"

    def to_dict(self) -> dict:
        """The report as JSON values; a figure that is not finite is None."""
        return {**finite(asdict(self)), "within": self.within, "verdict": self.verdict}

    def __str__(self) -> str:
        lines = [
            f"{self.backend} {self.precision} against the reference in float64, {self.images} image(s)",
            ROWS.head,
            *map(str, (*self.blocks, *self.results)),
        ]
        if self.top1_agreement:
            shares = ", ".join(f"{head} {share:.1%}" for head, share in self.top1_agreement.items())
            lines.append(f"top-1 agreement: {shares}")
        return "\n".join([*lines, self.verdict])


def verify(
    fast: EngineModule,
    images: Tensor,
    reference: Conformer,
    engine: Callable[[Sequence[str]], Engine] | None = None,
    quantization: Quantization | None = None,
) -> Report:
    """Measures `fast` on images (B, in_channels, H, W). It runs the reference in float64 where they are, slowly.

    reference:    the model that `fast` was made from, in fp32
    engine:       makes an engine like that of `fast` with other outputs; without it, nothing is known of the blocks
    quantization: what `fast` computes in 8 bits; without it the floor alone is the bound of such a model

    Raises ArgumentError when `quantization` is for another precision than that of `fast`.
    """
    precision = fast.settings.precision
    images = fast.as_input(images)
    ours = dict(zip(fast.outputs, fast.run(images), strict=True))
    inner = inner_names(reference.config) if engine else ()
    inside = dict(zip(inner, engine(inner)(images), strict=True)) if engine else {}
    names = tuple({**ours, **inside})
    exact = exact_outputs(reference, images, names)
    eager = eager_outputs(reference, images, names, precision, quantization)
    return report_of(fast.settings.backend.name, precision, ours, inside, exact, eager)


def report_of(
    backend: str,
    precision: str,
    results: dict[str, Tensor],
    blocks: dict[str, Tensor],
    exact: dict[str, Tensor],
    eager: dict[str, Tensor],
) -> Report:
    """Compares what a model returned and what it held inside with `exact_outputs` and `eager_outputs`, by name."""

    def rows(values: dict[str, Tensor], largest: float) -> tuple[Row, ...]:
        return tuple(
            _row(name, value, exact[name], eager.get(name), precision, largest) for name, value in values.items()
        )

    floor = FLOORS[precision].error
    images = len(next(iter(results.values())))
    agreement = _top1_agreement(results, exact)
    return Report(backend, precision, images, rows(results, floor), rows(blocks, math.inf), agreement)


def inner_names(config: ConformerConfig) -> tuple[str, ...]:
    """Both branches and coupling units of each block, in the order in which they are computed."""
    coupled = ("fcu_down", "tokens", "fcu_up", "map")
    return ("1.tokens", "1.map", *(f"{block}.{kind}" for block in range(2, config.depth + 1) for kind in coupled))


def exact_outputs(reference: Conformer, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The reference's values in float64, by name, computed where the images are."""
    return _run(reference, torch.float64, images, names)


def eager_outputs(
    reference: Conformer, images: Tensor, names: Sequence[str], precision: str, quantization: Quantization | None = None
) -> dict[str, Tensor]:
    """What PyTorch computes in `precision`, by name: the reference's values, or in 8 bits those of the quantized
    inference model on the CPU. Nothing for 8 bits without a quantization.

    Raises ArgumentError when `quantization` is for another precision.
    """
    if quantization and quantization.precision != precision:
        raise ArgumentError(f"the model runs in {precision}, its quantization is for {quantization.precision}")
    if precision in DTYPES:
        return _run(reference, DTYPES[precision], images, names)
    return _simulated(reference, images, names, quantization) if quantization else {}


def finite(figures: dict) -> dict:
    """The same as JSON values, with None for each number that is not finite."""
    return json.loads(json.dumps(figures), parse_constant=lambda constant: None)


def _row(name: str, value: Tensor, exact: Tensor, eager: Tensor | None, precision: str, largest: float) -> Row:
    """largest: the bound's own, above which it is nothing that PyTorch errs too"""
    error = relative_error(value, exact)
    if eager is None:
        return Row(name, error, math.nan, largest)
    eager_error = relative_error(eager, exact)
    return Row(name, error, eager_error, min(ALLOWANCE * eager_error + FLOOR[precision], largest))


def _run(reference: Conformer, dtype: torch.dtype, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    model = copy.deepcopy(reference).to(images.device, dtype)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False), tf32_as_asked(dtype):
        return dict(zip(names, observed_outputs(model, images.to(dtype), names), strict=True))


def _simulated(
    reference: Conformer, images: Tensor, names: Sequence[str], quantization: Quantization
) -> dict[str, Tensor]:
    """On the CPU, where the operators are functional.py itself and not the kernels that are being judged."""
    model = lower(reference, names, quantization=quantization)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        values = model(images.to("cpu", torch.float32))
    return {name: value.to(images.device) for name, value in zip(names, values, strict=True)}


def _top1_agreement(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    heads = {"conv": LOGITS[:1], "trans": LOGITS[1:], "sum": (SUM,) if SUM in ours else LOGITS}
    agreement = {}
    for head, names in heads.items():
        if set(names) <= set(ours):
            mine, true = (torch.stack([scores[name].double() for name in names]).sum(0) for scores in (ours, exact))
            agreement[head] = top1_agreement(mine, true)
    return agreement
