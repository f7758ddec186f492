"""What a run over many pictures did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BatchResult:
    """What `batch` wrote.

    out:      the file; source, kind: what was read, "folder", "tar", "parquet" or "named", pictures one by one
    pictures: rows in the file; went_on_from: how many of them a run before had written
    damaged:  names of pictures that could not be used, and what is wrong with each
    reason:   why the model runs by this backend, in this precision and on this device
    size:     side of its input; batch: pictures run together
    workers:  processes that decoded; ray: the address of the cluster that did all, None without
    seconds:  that this run took
    """

    out: str
    source: str
    kind: str
    pictures: int
    went_on_from: int
    damaged: dict[str, str]
    backend: str
    precision: str
    device: str
    reason: str
    size: int
    batch: int
    workers: int
    ray: str | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        damaged = [{"picture": name, "error": error} for name, error in self.damaged.items()]
        return {**asdict(self), "damaged": damaged}

    def __str__(self) -> str:
        here = self.pictures - self.went_on_from
        before = f", {self.went_on_from} of them in a run before" if self.went_on_from else ""
        damaged = f", {len(self.damaged)} damaged" if self.damaged else ""
        return (
            f"{self.reason}\n{self.out}: {self.pictures} pictures of {self.source} ({self.kind}){before}{damaged}; "
            f"{self.size}x{self.size}, batches of {self.batch}; {here / self.seconds:.1f} img/s"
        )
