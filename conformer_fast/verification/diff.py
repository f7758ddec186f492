"""Where error comes in: the same images through every implementation, compared inside the network as well.

Each precision has PyTorch's own run first, which is what the others are judged by: the reference model in that
precision, or in 8 bits the quantized inference model. All are compared with the reference in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .. import tables
from ..calibration.calibrate import Images, in_batches
from ..calibration.resolve import resolve
from ..checkpoints.adopt import Model, adopt
from ..engines.module import as_input
from ..engines.registry import IMPLEMENTATIONS, REFERENCE
from ..errors import ArgumentError, BackendError, EngineError, one_of, several
from ..inference.quantization import Quantization
from ..model.distance import sqnr_db
from ..model.names import PRECISIONS
from ..model.precision import DTYPES, FORMATS
from ..model.reference import Conformer
from ..progress import Bar
from . import implementations
from .verify import Report, Row, eager_outputs, exact_outputs, finite, inner_names, report_of


@dataclass(frozen=True)
class Fall:
    """`name` has an SQNR of `after` dB, NaN if it is not finite; the same value of the block before has `before`."""

    name: str
    before: float
    after: float

    def __str__(self) -> str:
        if math.isnan(self.after):
            return f"{self.name} is the first that is not finite"
        return f"SQNR falls most at {self.name}, from {self.before:.1f} to {self.after:.1f} dB"


@dataclass(frozen=True)
class Column:
    """One implementation in one precision. how: what ran it, in words, and device, None if nothing did; then
    `unavailable` says why. by_pytorch: calls of the kernels that PyTorch took over. report: its errors, as `verify`
    reports them, None if it did not run."""

    implementation: str
    precision: str
    how: str | None = None
    device: str | None = None
    by_pytorch: int = 0
    unavailable: str | None = None
    report: Report | None = None

    @property
    def rows(self) -> dict[str, Row]:
        """Every compared tensor by its name, in the order in which they are computed."""
        return {row.name: row for row in (*self.report.blocks, *self.report.results)} if self.report else {}

    @property
    def fall(self) -> Fall | None:
        """The first value inside whose SQNR falls most from one block to the next; None if none falls.

        What has no block before it is held against PyTorch's in the same precision. The first value that is not finite
        falls most of all.
        """
        rows = self.rows
        worst, most = None, 0.0
        for row in self.report.blocks if self.report else ():
            block, kind = row.name.split(".")
            earlier = rows.get(f"{int(block) - 1}.{kind}")
            before = earlier.sqnr_db if earlier else sqnr_db(row.eager_error)
            drop = math.inf if math.isnan(row.sqnr_db) and not math.isnan(before) else before - row.sqnr_db
            if drop > most:
                worst, most = Fall(row.name, before, row.sqnr_db), drop
        return worst

    @property
    def summary(self) -> str:
        """One line: whether the model's results are within their bounds, what is first over its own, and the fall."""
        who = f"{self.implementation} {self.precision}"
        if self.report is None:
            return f"{who}: not run: {self.unavailable}"
        over = [name for name, row in self.rows.items() if not row.within]
        parts = [f"{'within' if self.report.within else 'NOT within'} the bound"]
        parts += [f"{over[0]} is the first of {len(over)} over its own"] if over else []
        parts += [str(self.fall)] if self.fall else []
        return f"{who}: {'; '.join(parts)} ({self.how})"


@dataclass(frozen=True)
class Diff:
    """images (count), height and width: what it was measured on. columns: those of a precision are neighbors, and
    PyTorch's own run, "reference", is the first of them."""

    images: int
    height: int
    width: int
    columns: tuple[Column, ...]

    @property
    def within(self) -> bool:
        """Whether everything that ran returns what is within its bound."""
        return all(column.report.within for column in self.columns if column.report)

    @property
    def names(self) -> tuple[str, ...]:
        """Every compared tensor, in the order in which they are computed."""
        return tuple(self.columns[0].rows)

    @property
    def by_precision(self) -> dict[str, tuple[Column, ...]]:
        """The columns of each precision."""
        precisions = dict.fromkeys(column.precision for column in self.columns)
        return {
            precision: tuple(column for column in self.columns if column.precision == precision)
            for precision in precisions
        }

    def svg(self, title: str = "SQNR against the reference in float64") -> str:
        """A heat map as the text of an SVG file. Raises BackendError when matplotlib is not installed."""
        from .heatmap import svg

        return svg(self, title)

    def to_dict(self) -> dict:
        """The figures as JSON values; one that is not finite is None."""
        columns = [
            {**finite(asdict(column)), "fall": finite(asdict(column.fall)) if column.fall else None}
            for column in self.columns
        ]
        return {**asdict(self), "within": self.within, "columns": columns}

    def __str__(self) -> str:
        size = f"{self.images} image(s) of {self.height}x{self.width}"
        lines = [f"SQNR in dB against the reference in float64, {size}; * is over its bound, - was not run"]
        for precision, columns in self.by_precision.items():
            rows = [[name, *(_cell(column, name) for column in columns)] for name in self.names]
            if columns[0].report and columns[0].report.top1_agreement:
                rows.append(["top-1 agreement", *map(_agreement, columns)])
            heads = (tables.Column(column.implementation, ">", 11) for column in columns)
            lines += tables.Table(tables.Column(precision, width=15), *heads).lines(rows)
            lines += [column.summary for column in columns]
        return "\n".join(lines)


def diff(
    model: Model,
    images: Tensor,
    run: Iterable[tuple[str, str]] | None = None,
    *,
    quantization: Quantization | Images | None = None,
) -> Diff:
    """Runs images (B, in_channels, H, W) through each implementation and compares all of them.

    model:       what `compile` takes. It is not changed.
    images:      on the CPU; normalized, or uint8 pixels
    run:         pairs of implementation and precision; default: what runs here in reasonable time, in 32 and 16 bits.
                 "kernels" are the Triton kernels, on the GPU or else in Triton's interpreter, for which
                 TRITON_INTERPRET=1 must be set before anything imports them; "onnxruntime" runs the exported graph as
                 it is written; "engine" is what `compile` takes here, other backends go by their names. "reference" is
                 PyTorch, which runs in any case.
    quantization: how "int8" or "fp8" quantize, or batches of images from which their ranges are measured

    What cannot run here is in the result with the reason. Raises ArgumentError for unknown names, for a quantization
    that does not fit the precisions, and what `compile` raises for a wrong model or wrong images.
    """
    if run is None:
        run = [(name, precision) for precision in DTYPES for name in implementations.usual()]
    pairs = _checked(run)
    source = adopt(model)
    reference = source.reference
    images = as_input(images, reference.config, reference.pad, torch.device("cpu"), reference.recipe)
    precisions = tuple(dict.fromkeys(precision for _, precision in pairs))
    quantizations = _quantizations(reference, precisions, quantization)
    job = implementations.Job(reference, images, source.outputs, inner_names(reference.config), quantizations)
    exact = exact_outputs(reference, images, job.names)

    def report(implementation: str, precision: str, values: dict[str, Tensor], eager: dict[str, Tensor]) -> Report:
        results, inside = ({name: values[name] for name in part} for part in (job.results, job.inside))
        return report_of(implementation, precision, results, inside, exact, eager)

    others = [(implementation, precision) for implementation, precision in pairs if implementation != REFERENCE]
    columns = []
    total = len(precisions) + len(others)
    with Bar("comparing", total, "run") as progress:
        for precision in precisions:
            eager = eager_outputs(reference, images, job.names, precision, quantizations.get(precision))
            how = "PyTorch, simulated" if precision in quantizations else "PyTorch"
            found = report(REFERENCE, precision, eager, eager)
            columns.append(Column(REFERENCE, precision, how, "cpu", report=found))
            progress.update()
            for implementation in [name for name, asked in others if asked == precision]:
                try:
                    ran = implementations.run(implementation, precision, job)
                except (BackendError, EngineError, torch.OutOfMemoryError) as error:
                    columns.append(Column(implementation, precision, unavailable=str(error)))
                else:
                    found = report(ran.implementation, precision, ran.values, eager)
                    ran_by = ran.implementation, precision, ran.how, ran.device, ran.by_pytorch
                    columns.append(Column(*ran_by, report=found))
                progress.update()
    B, _, H, W = images.shape
    return Diff(B, H, W, tuple(columns))


def _checked(run: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    pairs = several("run", run)
    wrong = [pair for pair in pairs if not isinstance(pair, list | tuple) or len(pair) != 2]
    if wrong or not pairs:
        got = repr(wrong[0]) if wrong else "none"
        raise ArgumentError(f"run: give pairs such as ('onnxruntime', 'fp16'), got {got}")
    for implementation, precision in pairs:
        one_of("implementation", implementation, IMPLEMENTATIONS)
        one_of("precision", precision, PRECISIONS)
    return pairs


def _quantizations(
    reference: Conformer, precisions: Iterable[str], given: Quantization | Images | None
) -> dict[str, Quantization]:
    """How to quantize for each of the precisions that need it."""
    in_8_bits = [precision for precision in precisions if precision in FORMATS]
    if given is not None and not in_8_bits:
        raise ArgumentError("quantization is for int8 and fp8; leave it out, or compare one of them too")
    if given is not None and not isinstance(given, Quantization):
        given = in_batches(given, reference.config, reference.recipe)  # they are read for each precision
    found = {}
    for precision in in_8_bits:
        quantization, _ = resolve(reference, precision, given)
        assert quantization is not None
        found[precision] = quantization
    return found


def _cell(column: Column, name: str) -> str:
    if column.report is None:
        return "- "
    row = column.rows[name]
    return f"{row.sqnr_db:.1f}{' ' if row.within else '*'}"


def _agreement(column: Column) -> str:
    return f"{column.report.top1_agreement['sum']:.1%} " if column.report else "- "
