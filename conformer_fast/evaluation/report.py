"""What an evaluation found: accuracy of each head, agreement with the reference, speed and memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..tables import Column, Table
from .published import PICTURES, SIZE, Published

HEADINGS = "", "top-1", "top-5"
OF_BOTH = *HEADINGS, "reference top-1", "top-5", "same top-1"
WORDS = {"end_to_end": "end to end", "largest_worker": "largest worker", "gpu": "GPU"}  # of keys, for people


@dataclass(frozen=True)
class Score:
    """How many pictures have their class as the best one, and among the five best."""

    top1: int
    top5: int


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Every accuracy is a count of `evaluated` pictures.

    data:      what was evaluated on; pictures: how many it has (with a limit, were taken)
    evaluated: pictures that could be used; damaged: the others' names and what is wrong with them
    reason:    why the model runs by this backend, in this precision and on this device; size: side of its input
    compiled:  head ("conv", "trans" and their "sum") -> score; reference: the same, empty if none ran
    agreement: head -> pictures for which both have the same best class
    published: figures for a model of these sizes; they are of PICTURES pictures of ImageNet at SIZE
    seconds:   what `images_run` pictures took "end_to_end", with starting processes, decoding and both models, and the
               "compiled" and the "reference" model alone while others were decoded; empty when all was known before
    memory:    the most bytes that this "process" and the "largest_worker" had resident so far, and that PyTorch
               allocated on the "gpu"; what the system does not tell is left out
    """

    data: str
    kind: str
    pictures: int
    evaluated: int
    damaged: dict[str, str]
    backend: str
    precision: str
    device: str
    reason: str
    size: int
    batch: int
    workers: int
    compiled: dict[str, Score]
    reference: dict[str, Score]
    agreement: dict[str, int]
    published: tuple[Published, ...]
    images_run: int
    seconds: dict[str, float]
    memory: dict[str, int]

    @property
    def comparable(self) -> bool:
        """Whether as many pictures of the same size were evaluated as for the published figures."""
        return (self.evaluated, self.size) == (PICTURES, SIZE)

    def percent(self, count: int) -> float:
        return 100 * count / self.evaluated

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON values: counts, and percent of `evaluated`."""
        values = asdict(self)
        for name in ("compiled", "reference"):
            values[name] = {head: self._figures(asdict(score)) for head, score in getattr(self, name).items()}
        values["agreement"] = self._figures(self.agreement)
        values["damaged"] = [{"picture": name, "error": error} for name, error in self.damaged.items()]
        values["published"] = [
            {**figures._asdict(), "difference": self.differences(figures), "comparable": self.comparable}
            for figures in self.published
        ]
        return {**values, "images_per_second": self.images_per_second}

    def differences(self, published: Published) -> dict[str, float]:
        """Points by which the sum of the heads is above published figures."""
        score = self.compiled["sum"]
        found = {"top1": self.percent(score.top1) - published.top1}
        if published.top5 is not None:
            found["top5"] = self.percent(score.top5) - published.top5
        return found

    @property
    def images_per_second(self) -> dict[str, float]:
        """By the names of `seconds`."""
        return {name: self.images_run / seconds for name, seconds in self.seconds.items()}

    def _figures(self, counts: dict[str, int]) -> dict[str, dict[str, float]]:
        return {name: {"count": count, "percent": self.percent(count)} for name, count in counts.items()}

    def __str__(self) -> str:
        damaged = f", {len(self.damaged)} damaged and left out" if self.damaged else ""
        lines = [
            self.reason,
            f"{self.data} ({self.kind}): {self.evaluated} of {self.pictures} pictures evaluated{damaged}; "
            f"{self.size}x{self.size}, batches of {self.batch}",
            *Table(*map(Column, OF_BOTH if self.reference else HEADINGS)).lines(map(self._row, self.compiled)),
        ]
        lines += map(self._compared, self.published)
        if self.seconds:
            rates = (f"{WORDS.get(name, name)} {rate:.1f}" for name, rate in self.images_per_second.items())
            lines.append(f"img/s, of {self.images_run}: {', '.join(rates)}")
        sizes = (f"{WORDS.get(name, name)} {size / 1e6:.0f} MB" for name, size in self.memory.items())
        lines.append(f"peak memory: {', '.join(sizes)}")
        lines += [f"damaged: {error}" for error in self.damaged.values()]
        return "\n".join(lines)

    def _row(self, head: str) -> tuple[str, ...]:
        counts = [self.compiled[head].top1, self.compiled[head].top5]
        if self.reference:
            counts += [self.reference[head].top1, self.reference[head].top5, self.agreement[head]]
        return head, *(f"{self.percent(count):.2f}% ({count})" for count in counts)

    def _compared(self, published: Published) -> str:
        figures = {"top1": published.top1, "top5": published.top5}
        against = ", ".join(
            f"top-{name[-1]} {figures[name]:.2f}% ({points:+.2f} here)"
            for name, points in self.differences(published).items()
        )
        other = "" if self.comparable else f"; not comparable, that is of {PICTURES} pictures at {SIZE}x{SIZE}"
        return f"published by {published.source}: {against}{other}"
