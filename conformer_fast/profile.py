"""The shapes of images that an engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

Range = tuple[int, int, int]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Profile:
    """Batch, height and width, each (smallest, the one the engine is tuned for, largest).

    Raises ValueError unless they are whole numbers, at least 1, that do not fall.
    """

    batch: Range = (1, 8, 64)
    height: Range = (224, 224, 224)
    width: Range = (224, 224, 224)

    def __post_init__(self) -> None:
        for name, limits in self._limits():
            whole = isinstance(limits, tuple) and len(limits) == 3 and all(type(limit) is int for limit in limits)
            if not whole or not 1 <= limits[0] <= limits[1] <= limits[2]:
                raise ValueError(
                    f"{name} of a profile must be a tuple of three whole numbers, at least 1, that do not fall "
                    f"(smallest, tuned for, largest), such as (1, 8, 64); got {limits!r}"
                )

    def shapes(self, channels: int) -> tuple[Shape, Shape, Shape]:
        """(B, channels, H, W): the smallest, the one to tune for, the largest."""
        smallest, tuned, largest = (
            (B, channels, H, W) for B, H, W in zip(self.batch, self.height, self.width, strict=True)
        )
        return smallest, tuned, largest

    def check(self, shape: Sequence[int]) -> None:
        """Raises ValueError if images of `shape`, (B, C, H, W), are outside; it names the profile that holds them."""
        if len(shape) != 4 or min(shape) < 1:
            raise ValueError(f"images must be (batch, channels, height, width) and not empty, got shape {tuple(shape)}")
        sizes = {"batch": shape[0], "height": shape[2], "width": shape[3]}
        if all(low <= sizes[name] <= high for name, (low, _, high) in self._limits()):
            return
        taken = ", ".join(
            f"{name} {low} to {high}" if low < high else f"{name} {low}" for name, (low, _, high) in self._limits()
        )
        wider = {
            name: (min(low, sizes[name]), tuned, max(high, sizes[name])) for name, (low, tuned, high) in self._limits()
        }
        needed = ", ".join(f"{name}={limits}" for name, limits in wider.items())
        raise ValueError(
            f"images of shape {tuple(shape)} do not fit the engine, which takes {taken}; "
            f"build it again with Profile({needed})"
        )

    def to_json(self) -> dict[str, list[int]]:
        """The profile as JSON values; `from_json` reads them."""
        return {name: list(limits) for name, limits in self._limits()}

    @classmethod
    def from_json(cls, value: Any) -> Profile:
        """The profile that `to_json` wrote. Raises ValueError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise ValueError(f"a profile must have {', '.join(sorted(names))}, got {value!r}")
        return cls(**{name: tuple(limits) if isinstance(limits, list) else limits for name, limits in value.items()})

    def _limits(self) -> tuple[tuple[str, Range], ...]:
        return ("batch", self.batch), ("height", self.height), ("width", self.width)
