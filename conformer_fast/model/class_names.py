"""Names of the classes: the WordNet synsets of ILSVRC2012 (ImageNet-1k) in their official order, and the digits.

data/imagenet_classes.txt has one `synset<TAB>name` line per class. The name is the synset's first lemma; of the six
that would otherwise be the same word twice, parentheses say which is which.
"""

from __future__ import annotations

from importlib.resources import files

from .config import PACKAGED, ConformerConfig, get_config

IMAGENET_CLASSES = 1000


def labels_for(model: str | ConformerConfig) -> list[str]:
    """One name per class of a model's name or configuration, in the order of its scores.

    The digits model has "0" ... "9", any other of 1000 classes ImageNet's names, the rest "class 0", "class 1", ...
    Raises ArgumentError for an unknown model name.
    """
    config = get_config(model)
    if config == PACKAGED["digits"]:
        return [str(digit) for digit in range(10)]
    if config.num_classes == IMAGENET_CLASSES:
        return imagenet_labels()
    return numbered_labels(config.num_classes)


def numbered_labels(count: int) -> list[str]:
    """Names for classes that have none."""
    return [f"class {index}" for index in range(count)]


def imagenet_labels() -> list[str]:
    """The 1000 names, index 0 "tench" ... 999 "toilet tissue"."""
    return [name for _, name in _imagenet()]


def imagenet_synsets() -> list[str]:
    """The 1000 WordNet synsets in the same order, which is their alphabetical one: "n01440764" ... "n15075141"."""
    return [synset for synset, _ in _imagenet()]


def _imagenet() -> list[list[str]]:
    text = files("conformer_fast").joinpath("data/imagenet_classes.txt").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]
