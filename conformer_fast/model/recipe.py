"""What a model was trained for and its tensors do not tell; and what is taken where nobody says it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, several, shown, whole
from .class_names import IMAGENET_CLASSES, labels_for
from .config import PACKAGED, VARIANTS, ConformerConfig
from .shapes import check_side, side, usual_side

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MOST_HEADS = 1 << 14
SMALLEST_STD = 1e-3  # 1 / 255 leaves the levels 0 ... 255 as they are


@dataclass(frozen=True)
class Recipe:
    """What a model was trained for: the size, normalization and classes of its pictures, and its attention heads.

    size:      pixels of the side of its images
    num_heads: attention heads of a transformer block
    labels:    the classes' names, in the order of the scores
    mean, std: of each channel of pixels from 0 to 1, as (pixel - mean) / std; both or neither

    None is what is not known. Raises ArgumentError for what cannot be, such as a mean of pixels from 0 to 255.
    """

    size: int | None = None
    num_heads: int | None = None
    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, checked in _CHECKED.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked(name, getattr(self, name)))
        if len(self.mean or ()) != len(self.std or ()):
            raise ArgumentError(f"mean and std have a number a channel each, got mean={self.mean} and std={self.std}")

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std); ImageNet's where it is not known."""
        return (MEAN, STD) if self.mean is None or self.std is None else (self.mean, self.std)

    def over(self, other: Recipe) -> Recipe:
        """What this one knows, and of the rest what the other knows. mean and std come from one of them."""
        return Recipe(**{**other.known(), **self.known()})

    def denies(self, other: Recipe) -> list[str]:
        """The names of what both know, and this one says otherwise."""
        known = self.known()
        return [name for name, value in other.known().items() if known.get(name, value) != value]

    def known(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Any) -> Recipe:
        """Of JSON values, as `known` gives them. Raises ArgumentError for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or not value.keys() <= names:
            raise ArgumentTypeError(f"must have {', '.join(sorted(names))} or some of these, got {shown(repr(value))}")
        return cls(**value)

    def check(self, config: ConformerConfig, *, heads: bool = True) -> None:
        """Raises ArgumentError unless it can be that of such a model. heads: whether that has classes."""
        if self.num_heads not in (None, config.num_heads):
            raise ArgumentError(
                f"the weights are for num_heads={self.num_heads}, the model has {config.num_heads}; build it with "
                f"ConformerConfig(num_heads={self.num_heads}, ...)"
            )
        if heads and self.labels is not None and len(self.labels) != config.num_classes:
            raise ArgumentError(
                f"{len(self.labels)} labels for a model of {config.num_classes} classes; give one for each, in order"
            )
        if self.mean is not None and len(self.mean) != config.in_channels:
            raise ArgumentError(f"mean and std are of {len(self.mean)} channels, the model reads {config.in_channels}")
        if self.size is not None and self.size < config.patch_size:
            raise ArgumentError(f"images of {self.size} pixels are smaller than one patch of {config.patch_size}")


def checked(recipe: Any) -> Recipe:
    """Raises ArgumentTypeError unless it is one."""
    if not isinstance(recipe, Recipe):
        raise ArgumentTypeError(f"the recipe must be a Recipe, such as Recipe(size=224), got {shown(repr(recipe))}")
    return recipe


def usual_recipe(config: ConformerConfig) -> Recipe:
    """Of a published variant or the digits model; of other sizes, nothing is known."""
    if config in (VARIANTS | PACKAGED).values():
        return Recipe(usual_side(config), config.num_heads, tuple(labels_for(config)), MEAN, STD)
    return Recipe()


def input_side(recipe: Recipe, config: ConformerConfig, asked: int | None = None) -> int:
    """Pixels of the side of a model's input: as asked for, else as it was trained, else as is usual for its sizes.

    Warns, in one line, of what is assumed: the usual side, or the normalization of pictures of that size; and where the
    weights say another side than is asked for. Raises ArgumentError unless `asked` is a whole number, at least a patch.
    """
    known = recipe
    if asked is not None:
        asked = check_side(side("size", asked), config)
        if recipe.size not in (None, asked):
            warnings.warn(f"images of {asked} pixels, as asked for; the weights say {recipe.size}", stacklevel=1)
        known = Recipe(size=asked).over(recipe)
    if known.size is None or _normalization_is_assumed(known, config):
        _warn_of_assumptions(known, config)
    return known.size or usual_side(config)


def class_labels(recipe: Recipe, config: ConformerConfig) -> tuple[str, ...]:
    """One name a class: those of the recipe, else as labels_for() has them."""
    return recipe.labels or tuple(labels_for(config))


def shown_labels(recipe: Recipe, config: ConformerConfig, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names that people will see: as asked for, else as class_labels() has them.

    Warns where ImageNet's are assumed, and where the weights say others than are asked for.
    """
    if asked is None:
        if recipe.labels is None and config.num_classes == IMAGENET_CLASSES:
            _warn_of_assumptions(recipe, config)
        return class_labels(recipe, config)
    if recipe.labels not in (None, tuple(asked)):
        warnings.warn("class names as given; the weights say others", stacklevel=1)
    return tuple(asked)


def _normalization_is_assumed(recipe: Recipe, config: ConformerConfig) -> bool:
    """Of pictures, which a model of other channels does not read."""
    return recipe.mean is None and config.in_channels == 3


def _warn_of_assumptions(recipe: Recipe, config: ConformerConfig) -> None:
    """The same words for one model, and from here, wherever it is noticed: so Python shows them once."""
    assumed = {}
    if recipe.size is None:
        assumed["size"] = f"images of {usual_side(config)} pixels"
    if _normalization_is_assumed(recipe, config):
        assumed["mean and std"] = "ImageNet's normalization"
    if recipe.labels is None and config.num_classes == IMAGENET_CLASSES:
        assumed["labels"] = "ImageNet's class names"
    warnings.warn(
        f"the weights do not say their {', '.join(assumed)}; assumed where not given: {', '.join(assumed.values())}. "
        f"To write what is true into the file: conformer-fast convert, or convert(..., recipe=Recipe(...))",
        stacklevel=1,
    )


def check_label_lines(labels: Iterable[Any]) -> None:
    """Raises ArgumentError unless each is one line of text."""
    for label in labels:
        if (
            not isinstance(label, str)
            or label.splitlines() != [label]
            or label != label.encode(errors="ignore").decode()
        ):
            raise ArgumentError(f"a label must be one line of text, got {shown(repr(label))}")


def _heads(name: str, value: Any) -> int:
    number = whole(name, value)
    if number > MOST_HEADS:
        raise ArgumentError(f"{name} must be at most {MOST_HEADS}")
    return number


def _lines(name: str, values: Any) -> tuple[str, ...]:
    labels = tuple(several(name, values))
    check_label_lines(labels)
    return labels


def _of_channels(name: str, values: Any) -> tuple[float, ...]:
    values, least = several(name, values), SMALLEST_STD if name == "std" else 0.0
    values = [value.item() if isinstance(value, Tensor) and not value.ndim else value for value in values]
    for value in values:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not least <= value <= 1:
            raise ArgumentError(
                f"{name} must be numbers from {least:g} to 1, of pixels from 0 to 1, got {shown(repr(value), 40)}; "
                f"divide those of pixels from 0 to 255 by 255"
            )
    if not values:
        raise ArgumentError(f"{name} must have one number a channel, got none")
    return tuple(map(float, values))


_CHECKED: dict[str, Callable[[str, Any], Any]] = {
    "size": side,
    "num_heads": _heads,
    "labels": _lines,
    "mean": _of_channels,
    "std": _of_channels,
}
USUAL = Recipe()  # whose normalization is ImageNet's, as nothing else is known
