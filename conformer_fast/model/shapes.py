"""The shapes of images that an engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, shown, whole
from .config import DIGITS_SIDE, LARGEST_SIDE, PACKAGED, ConformerConfig

Range = tuple[int, int, int]
Shape = tuple[int, int, int, int]
Pad = Literal["stem", "none"]
SIDE = 224  # pixels of the images that published models are trained on


@dataclass(frozen=True)
class Shapes:
    """Batch, height and width, each (smallest, the one the engine is tuned for, largest).

    Raises ArgumentError unless they are whole numbers, at least 1, that do not fall.
    """

    batch: Range = (1, 8, 64)
    height: Range = (224, 224, 224)
    width: Range = (224, 224, 224)

    def __post_init__(self) -> None:
        for name, limits in self._limits():
            whole = isinstance(limits, tuple) and len(limits) == 3 and all(type(limit) is int for limit in limits)
            if not whole or not 1 <= limits[0] <= limits[1] <= limits[2]:
                raise ArgumentError(
                    f"{name} of shapes must be a tuple of three whole numbers, at least 1, that do not fall "
                    f"(smallest, tuned for, largest), such as (1, 8, 64); got {shown(repr(limits))}"
                )

    def with_channels(self, channels: int) -> tuple[Shape, Shape, Shape]:
        """(B, channels, H, W): the smallest, the one to tune for, the largest."""
        smallest, tuned, largest = (
            (B, channels, H, W) for B, H, W in zip(self.batch, self.height, self.width, strict=True)
        )
        return smallest, tuned, largest

    def check(self, shape: Sequence[int]) -> None:
        """Raises ArgumentError if images of `shape`, (B, C, H, W), are outside; it names the shapes that hold them."""
        if len(shape) != 4 or min(shape) < 1:
            raise ArgumentError(
                f"images must be (batch, channels, height, width) and not empty, got shape {tuple(shape)}"
            )
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
        raise ArgumentError(
            f"images of shape {tuple(shape)} do not fit the engine, which takes {taken}; "
            f"build it again with Shapes({needed})"
        )

    def to_json(self) -> dict[str, list[int]]:
        """The shapes as JSON values; `from_json` reads them."""
        return {name: list(limits) for name, limits in self._limits()}

    @classmethod
    def from_json(cls, value: Any) -> Shapes:
        """The shapes that `to_json` wrote. Raises ArgumentError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise ArgumentError(f"shapes must have {', '.join(sorted(names))}, got {shown(repr(value))}")
        return cls(**{name: tuple(limits) if isinstance(limits, list) else limits for name, limits in value.items()})

    def _limits(self) -> tuple[tuple[str, Range], ...]:
        return ("batch", self.batch), ("height", self.height), ("width", self.width)


def check_shapes(several: Sequence[Shapes], config: ConformerConfig, pad: Pad) -> None:
    """Raises ArgumentError when the model takes no images of its sizes."""
    for shapes in several:
        for shape in shapes.with_channels(config.in_channels):
            check_image_size(torch.empty(shape, device="meta"), config, pad)


def side(name: str, value: Any) -> int:
    """`value` as pixels of a picture's side. Raises ArgumentError, before anything of that size is made, unless it is a
    whole number from 1 to LARGEST_SIDE."""
    pixels = whole(name, value)
    if pixels > LARGEST_SIDE:
        raise ArgumentError(f"{name} must be at most {LARGEST_SIDE} pixels, got {pixels}")
    return pixels


def side_within(shapes: Sequence[Shapes], asked: int | None) -> int | None:
    """The side of square images that an engine of these shapes takes: as asked for if it fits, else what it is tuned
    for; as asked for if there are no shapes."""
    fits = any(one.height[0] <= (asked or 0) <= one.height[2] for one in shapes)
    return asked if fits or not shapes else shapes[0].height[1]


def usual_side(config: ConformerConfig) -> int:
    """Pixels of the side of the images that such a model is trained on; whole patches."""
    if config == PACKAGED["digits"]:
        return DIGITS_SIDE
    return config.patch_size * max(1, round(SIDE / config.patch_size))


def square_shapes(side: int) -> Shapes:
    """Batches of 1 to 64 images of side x side pixels."""
    return Shapes(height=(side,) * 3, width=(side,) * 3)


def check_side(side: int, config: ConformerConfig) -> int:
    """The side as it is. Raises ArgumentError for one of less than a patch."""
    patch = config.patch_size
    if side < patch:
        raise ArgumentError(
            f"size must be at least {patch}, got {side}: such images are smaller than one {patch}x{patch} patch"
        )
    return side


def check_image_size(images: Tensor, config: ConformerConfig, pad: Pad = "stem") -> None:
    """Raises ArgumentError unless `images` is (B, in_channels, H, W) of a size that the strides and `pad` allow."""
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(f"images must be a tensor (B, C, H, W), got a {type(images).__name__}; see load_batch")
    if images.ndim != 4 or images.shape[1] != config.in_channels:
        raise ArgumentError(
            f"images must have shape (batch, {config.in_channels}, height, width), got {tuple(images.shape)}"
        )
    H, W = images.shape[-2:]
    patch = config.patch_size
    if patch > H or patch > W:
        raise ArgumentError(f"images are {H}x{W}, smaller than one {patch}x{patch} patch; resize them first")
    stem = tuple(-(-size // 4) for size in (H, W))  # two layers of stride 2, each rounding up
    if pad == "none" and any(size % config.stem_stride for size in stem):
        raise ArgumentError(
            f"a {H}x{W} image gives a {stem[0]}x{stem[1]} stem map, which is not whole {patch}x{patch} patches; "
            f"resize to multiples of {patch} or build the model with pad='stem'"
        )
