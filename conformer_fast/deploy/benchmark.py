"""benchmark(): how much faster compiled models are than eager PyTorch, on this machine, and how sure that is."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from ..calibration.noise import quantization_of_noise
from ..checkpoints.create import create_model
from ..engines import busy
from ..engines.base import Backend
from ..engines.ceiling import Ceiling
from ..engines.registry import choose
from ..engines.rounds import ENOUGH, Spread, drift, spread
from ..engines.timing import seconds_in_turn
from ..errors import ArgumentError, EngineError, a_function, is_of_memory, several, whole
from ..inference import work
from ..inference.quantization import Quantization
from ..model.config import VARIANTS, ConformerConfig, name_of
from ..model.reference import Conformer
from ..model.shapes import check_side, usual_side
from ..progress import Bar
from ..tables import Column, Table
from .compile import compile
from .fast_conformer import FastConformer


@dataclass(frozen=True)
class Benchmark:
    """What one model takes for one batch.

    model:     the name of its sizes; "custom" if they have none
    size:      pixels of the side of the images
    backend, precision, device: how it was compiled; threads: of the CPU, that it may use
    reference_rounds_ms: milliseconds of the reference in eager fp32, on the same device, round by round;
    compiled_rounds_ms:  of the compiled model, which takes turns with it
    products_ms: milliseconds of the compiled network's products alone, if they all ran at the best rate that was
                 measured on this machine; bytes_ms: of reading its weights and of reading and writing what lies between
                 its operations, once, at the best rate of memory or caches; None where nothing is measured,
                 and bytes_ms where no block is as large as the least that was
    others:    cores of the CPU that other processes used meanwhile; None where it is not known
    """

    TABLE: ClassVar[Table] = Table(
        Column("model", width=9),
        Column("batch", "d"),
        Column("eager ms", ".1f", 8),
        Column("compiled ms", ".1f"),
        Column("images/s", ".1f"),
        Column("speed-up", ">", 16),
        Column("drift", "+.0%"),
        Column("ceiling", ".0%"),
        Column("compiled for"),
    )

    model: str
    batch: int
    size: int
    backend: str
    precision: str
    device: str
    threads: int
    reference_rounds_ms: tuple[float, ...]
    compiled_rounds_ms: tuple[float, ...]
    products_ms: float | None = None
    bytes_ms: float | None = None
    others: float | None = None

    @property
    def reference_ms(self) -> float:
        """The median."""
        return statistics.median(self.reference_rounds_ms)

    @property
    def compiled_ms(self) -> float:
        """The median."""
        return self.compiled_spread.median

    @cached_property
    def compiled_spread(self) -> Spread:
        """Of `compiled_ms`. It says little unless there are `enough_rounds`."""
        return spread(self.compiled_rounds_ms)

    @property
    def speedup(self) -> float:
        """The median over the rounds of how many times faster the compiled model was."""
        return self.speedup_spread.median

    @cached_property
    def speedup_spread(self) -> Spread:
        """Of `speedup`. What slows down both models of a round leaves it as it is. It says little unless there are
        `enough_rounds`."""
        pairs = zip(self.reference_rounds_ms, self.compiled_rounds_ms, strict=True)
        return spread([reference / compiled for reference, compiled in pairs])

    @property
    def enough_rounds(self) -> bool:
        """Whether they tell how sure a figure is."""
        return len(self.compiled_rounds_ms) >= ENOUGH

    @property
    def told_apart(self) -> bool:
        """Whether the rounds say which of the two is faster: 1 is outside of the speed-up's spread."""
        found = self.speedup_spread
        return self.enough_rounds and not found.low <= 1 <= found.high

    @property
    def drift(self) -> float | None:
        """How much slower the machine became from the first third of the rounds to the last, as a share, by the
        reference; None of few rounds."""
        return drift(self.reference_rounds_ms)

    @property
    def images_per_second(self) -> float:
        """Of the compiled model."""
        return self.batch / self.compiled_ms * 1e3

    @property
    def ceiling_ms(self) -> float | None:
        """What the batch takes at least: the longer of products and bytes, as if each were done during the other."""
        return None if self.products_ms is None else max(self.products_ms, self.bytes_ms or 0.0)

    @property
    def share_of_ceiling(self) -> float | None:
        """Of the speed that the machine would allow, how much the compiled model reaches."""
        return None if self.ceiling_ms is None else self.ceiling_ms / self.compiled_ms

    @property
    def remarks(self) -> list[str]:
        """What a reader of the figures must know beside them, a line each."""
        name, found, share = f"{self.model}, batch {self.batch}", self.speedup_spread, self.share_of_ceiling
        remarks = []
        if not self.enough_rounds:
            remarks.append(f"{name}: fewer than {ENOUGH} rounds do not tell how sure a figure is")
        elif not self.told_apart:
            remarks.append(
                f"{name}: not to tell apart from eager, between {found.low:.2f}x and {found.high:.2f}x; more rounds "
                f"may tell them apart"
            )
        if share is not None and share > 1:
            remarks.append(
                f"{name}: above the ceiling, which was measured too low, as on a machine that was busy just then; run "
                f"it again on an idle one"
            )
        return remarks

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; the spreads are None of few rounds."""
        derived = ("reference_ms", "compiled_ms", "speedup", "told_apart", "drift", "images_per_second", "ceiling_ms")
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in (*derived, "share_of_ceiling", "remarks")},
            "compiled_spread_ms": self._ends(self.compiled_spread),
            "speedup_spread": self._ends(self.speedup_spread),
        }

    def __str__(self) -> str:
        """One line below TABLE.head."""
        ends = self._ends(self.speedup_spread)
        speedup = f"{_ratio(self.speedup)}x {'..'.join(map(_ratio, ends)) if ends else '-'}"
        figures = self.reference_ms, self.compiled_ms, self.images_per_second, speedup, self.drift
        compiled_for = f"{self.backend} {self.precision}"
        return self.TABLE.line(self.model, self.batch, *figures, self.share_of_ceiling, compiled_for)

    def _ends(self, found: Spread) -> list[float] | None:
        return [found.low, found.high] if self.enough_rounds else None


def benchmark(
    models: Iterable[str | ConformerConfig | Conformer] = tuple(VARIANTS),
    batches: Iterable[int] = (1, 8),
    *,
    size: int | None = None,
    backend: str | Backend = "auto",
    precision: str = "auto",
    quantization: Quantization | None = None,
    rounds: int = 10,
    each: Callable[[Benchmark], object] = lambda row: None,
) -> list[Benchmark]:
    """Times compiled models against their references, in turn, and measures what this machine reaches at most.

    models:       models, or names or configurations of ones with random weights, which take as long as trained ones
    batches:      numbers of images run together
    size:         side of the images in pixels; default: each model's own, which its recipe says; else what such models
                  are trained on, 224 for the published ones
    backend, precision: as for `compile`
    quantization: for "int8" and "fp8"; default: all products that `calibrate` puts in 8 bits
    rounds:       each model is called so often
    each:         is given each result as soon as it is known

    Warns, once, where other processes use the cores that this needs, before it measures or during a row, and where the
    threads are more than the cores that a container allows.

    Raises what `compile` raises; EngineError for a batch beyond the memory; ArgumentError for an unknown model, for
    numbers below 1, and a size below a patch.
    """
    models, rounds = several("models", models), whole("rounds", rounds)
    a_function("each", each)
    batches = [whole("batches", batch) for batch in several("batches", batches)]
    if not batches or not models:
        raise ArgumentError(f"give at least one model and one batch, got {models} and {batches}")
    rows: list[Benchmark] = []
    watch = _Watch()
    for model in models:
        reference = copy.deepcopy(model) if isinstance(model, Conformer) else create_model(model)
        side = (reference.recipe.size or usual_side(reference.config)) if size is None else whole("size", size)
        check_side(side, reference.config)
        name = name_of(reference.config) or "custom"
        with Bar(f"compiling {name}", 1) as bar:
            fast = _compiled(reference, (max(batches), side), backend, precision, quantization)
            bar.update()
        with Bar("measuring this machine", 1) as bar:
            ceiling = fast.settings.backend.ceiling(fast.settings.precision, str(fast.device))
            bar.update()
        reference.to(fast.device)
        watch.before(fast)
        for batch in batches:
            shape = batch, reference.config.in_channels, side, side
            with Bar(f"{name}, batch {batch}", rounds, "round") as bar:
                row = _row(name, reference, fast, shape, rounds, ceiling, bar)
            watch.after(row)
            rows.append(row)
            each(row)
    return rows


def _ratio(value: float) -> str:
    """Three digits, or more of what is above 1000: short, for a column."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _compiled(
    reference: Conformer,
    largest: tuple[int, int],
    backend: str | Backend,
    precision: str,
    quantization: Quantization | None,
) -> FastConformer:
    """largest: images of a batch, and their side"""
    batch, side = largest
    here = choose(backend, precision).backend.for_images((batch, reference.config.in_channels, side, side))
    chosen = quantization or quantization_of_noise(reference, precision, side)
    return compile(reference, backend=here, precision=precision, quantization=chosen)


def _row(
    name: str,
    reference: Conformer,
    fast: FastConformer,
    shape: tuple[int, int, int, int],
    rounds: int,
    ceiling: Ceiling | None,
    bar: Bar,
) -> Benchmark:
    others = busy.Others()
    try:
        images = torch.randn(shape, device=fast.device)
        with torch.inference_mode():
            seconds = seconds_in_turn({"reference": reference, "compiled": fast}, images, rounds, after=bar.update)
    except RuntimeError as error:
        if not is_of_memory(error):
            raise
        batch, _, side, _ = shape
        raise EngineError(
            f"{batch} images of {side}x{side} are more than the memory of {fast.device} holds; give a smaller batch"
        ) from error
    used = others.used()
    settings, products_ms, bytes_ms = fast.settings, None, None
    if ceiling is not None:
        network = work.of_network(
            reference.config,
            shape,
            ceiling.around,
            settings.quantization,
            features_only=reference.features_only,
        )
        products_ms, bytes_ms = 1e3 * ceiling.multiplying(network), 1e3 * ceiling.moving(network) or None
    reference_ms, compiled_ms = (tuple(1e3 * taken for taken in seconds[who]) for who in ("reference", "compiled"))
    return Benchmark(
        name,
        shape[0],
        shape[-1],
        settings.backend.name,
        settings.precision,
        str(fast.device),
        _threads(fast),
        reference_ms,
        compiled_ms,
        products_ms,
        bytes_ms,
        used,
    )


def _threads(fast: FastConformer) -> int:
    return getattr(fast.settings.backend, "threads", None) or torch.get_num_threads()


class _Watch:
    """Warns, once, where the threads have too few cores. It counts what others use from when it is made."""

    def __init__(self) -> None:
        self._warned, self._others = False, busy.Others()

    def before(self, fast: FastConformer) -> None:
        allowed, threads = busy.allowed(), _threads(fast)
        if fast.device.type == "cpu" and threads > allowed:
            self._warn(
                f"{threads} threads share the {allowed:g} cores that this process may use; run it with "
                f"OMP_NUM_THREADS={max(1, int(allowed))}"
            )
        self._warn(self._judged("use", self._others.used(), str(fast.device), threads))

    def after(self, row: Benchmark) -> None:
        self._warn(self._judged(f"used, during {row.model}, batch {row.batch},", row.others, row.device, row.threads))

    def _judged(self, verb: str, used: float | None, device: str, threads: int) -> str | None:
        """What to warn of, if anything."""
        needed, cores = threads if device == "cpu" else 1, self._others.cores
        if used is None or not busy.disturbed(used, cores, needed):
            return None
        return (
            f"the machine is busy: other processes {verb} {used:.1f} of {cores} cores, and this needs {needed}; "
            f"end other programs or wait, then measure again"
        )

    def _warn(self, why: str | None) -> None:
        if why is not None and not self._warned:
            warnings.warn(why, stacklevel=4)  # benchmark's caller
            self._warned = True
