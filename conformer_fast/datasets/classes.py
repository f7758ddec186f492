"""Which class a label or a folder's name means: by what the model calls its classes, by number, by ImageNet synset or
class name, or by its place.

Numbers are 0 ... num_classes - 1 in the order of the model's scores. ImageNet's models have their classes in the order
of the synsets' names ("n01440764", ...), which is also that of mmpretrain, torchvision, timm and Hugging Face's
imagenet-1k. The ids 1 ... 1000 of ILSVRC's own development kit have another order, so they are refused.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache

from ..errors import DatasetError, first_few, shown
from ..model.class_names import IMAGENET_CLASSES, imagenet_labels, imagenet_synsets, numbered_labels

RENAMED = (  # the folders of the development kit's ids become synsets
    'python -c "import os; from scipy.io import loadmat; [os.rename(str(row[0]), row[1]) for row in '
    "loadmat('meta.mat', squeeze_me=True)['synsets'][:1000]]\""
)
DEVKIT = f"the ids 1 ... {IMAGENET_CLASSES} of ILSVRC's development kit have another order than the models' scores"
ONE_EACH = (
    "name the folder that holds a folder a class, an empty one for a class without pictures, or give a label file"
)
NUMBERED = "name them so, where class 0 without pictures has an empty folder, or give a label file"
RENAME = "give a label file, or folders that are called as the model's classes"
SAY = "say what they mean: by folders that are called by the synset, or by a label file"
APART = str.maketrans("_-/", "   ")  # what stands between words; no folder's name has a slash


class Names:
    """What a model calls its classes, in the order of its scores."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._written, self._alike = defaultdict(set), defaultdict(set)
        for index, name in enumerate(names):
            self._written[same_form(name)].add(index)
            self._alike[_in_small(name)].add(index)
            if len(_imagenet_classes(name)) == 1:  # or by its synset
                self._alike[imagenet_synsets()[next(iter(_imagenet_classes(name)))]].add(index)

    def classes(self, name: str) -> set[int]:
        """Those that have this name: as it is written or, if none has, in small letters and with any of " _-/" between
        its words."""
        return self._written.get(same_form(name)) or self._alike.get(_in_small(name), set())


def own_names(class_names: Sequence[str] | None) -> Names | None:
    """Names that data can be compared with: not ImageNet's, in its order, which are known better here, nor mere numbers
    for classes without a name."""
    names = list(class_names or ())
    imagenets = len(names) == IMAGENET_CLASSES and all(
        index in _imagenet_classes(name) for index, name in enumerate(names)
    )
    return None if not names or imagenets or names == numbered_labels(len(names)) else Names(names)


def label_of(text: str, num_classes: int | None, where: str, class_names: Names | None = None) -> int:
    """The class that a label's text means: a number, a name that the model has for it, or a synset or class name of
    ImageNet where the model has its 1000 classes.

    num_classes: of the model; None when it is not known, then any number and any synset goes. where: for the message.
    class_names: what the model calls its classes, as `own_names` has it

    Raises DatasetError for any other text, for a number that is no class of the model, and for one that is another
    class's name.
    """
    called = class_names.classes(text) if class_names else set()
    if len(called) > 1:
        raise DatasetError(
            f"{where}: the label {shown(repr(text), 100)} may mean several of the model's classes: "
            f"{first_few(sorted(called))}; write the number"
        )
    if called:
        (index,) = called
        if _is_number(text) and int(text) != index:
            raise DatasetError(
                f"{where}: the label {shown(text)} may mean the class of that number, or the one that the model calls "
                f"so, number {index}; give folders that are called as the model's classes"
            )
        return index
    if class_names is None and is_synset(text) and num_classes in (None, IMAGENET_CLASSES):
        return _synsets()[text]
    if class_names is None and num_classes == IMAGENET_CLASSES and len(_imagenet_classes(text)) == 1:
        return next(iter(_imagenet_classes(text)))
    if text == "-1":
        raise DatasetError(f"{where}: the label -1 means unlabeled, as in test splits; take the validation split")
    if not text.isascii() or not text.removeprefix("-").isdecimal():
        imagenets = " nor, for 1000 classes, an ImageNet synset such as n01440764 or its name"
        names = f", which are {first_few(class_names.names)}" if class_names else imagenets
        raise DatasetError(
            f"{where}: the label {shown(repr(text), 100)} is neither a number nor a class name of the model's{names}"
        )
    if not _is_number(text) or (num_classes is not None and int(text) >= num_classes):
        classes_are = "0 ... 999999999" if num_classes is None else f"0 ... {num_classes - 1}, the model's classes"
        devkit = f"; {DEVKIT}" if text == str(num_classes) == str(IMAGENET_CLASSES) and not class_names else ""
        raise DatasetError(f"{where}: the label {shown(text)} is none of {classes_are}; numbers begin at 0{devkit}")
    return int(text)


def classes_of(
    names: Sequence[str],
    num_classes: int | None,
    where: str,
    class_names: Names | None = None,
    instead: str = "",
) -> dict[str, int]:
    """The class of each folder's or label's name.

    The model's own names or, of a model that says none, synsets and class names of ImageNet have their own classes, and
    plain numbers are classes, so some may be absent. Other names are refused if the model says its own. Else they are
    numbered as they are given, so all must be there, with a warning if the model is known.

    class_names: what the model calls its classes, as `own_names` has it
    instead: what to do where there are no folders to rename and no label file counts

    Raises DatasetError when it is not clear which classes are meant.
    """
    if class_names and any(map(class_names.classes, names)):
        return _as_called(names, class_names, where, instead)
    if class_names is None and num_classes in (None, IMAGENET_CLASSES) and _synsets().keys() >= set(names):
        return {name: _synsets()[name] for name in names}
    if names and all(_is_number(name) for name in names):
        return _numbered(names, num_classes, where, instead)
    if class_names:
        raise DatasetError(
            f"{where} has the classes {first_few(names)}, and none of them is among the model's: "
            f"{first_few(class_names.names)}; {instead or RENAME}"
        )
    if num_classes == IMAGENET_CLASSES:
        known = [name for name in names if _imagenet_classes(name)]
        if 2 * len(known) > len(names):
            return _named(names, where)
    if num_classes is not None and len(names) != num_classes:
        raise DatasetError(
            f"{where} has {len(names)} classes ({first_few(names)}), the model has {num_classes} classes; "
            f"{instead or ONE_EACH}"
        )
    if num_classes is not None:  # what is assumed of the model
        order = f"{where}: the classes are taken in this order: {first_few(names)}"
        warnings.warn(f"{order}, as those of the model, which says no names", stacklevel=2)
    return {name: index for index, name in enumerate(names)}


def check_not_renumbered(
    labels: Collection[int],
    num_classes: int | None,
    where: str,
    class_names: Names | None = None,
    instead: str = "",
) -> None:
    """Raises DatasetError for bare numbers 0 ... k - 1 of more classes: some classes numbered anew, as in imagenette,
    look the same as the model's first k. Not where the model calls its classes by these numbers."""
    if class_names and all(class_names.classes(str(label)) == {label} for label in set(labels)):
        return
    count = len(set(labels))
    if num_classes is not None and 1 < count < num_classes and max(labels) == count - 1:
        raise DatasetError(
            f"{where} has labels 0 ... {count - 1} alone, the model has {num_classes} classes: a part of them that is "
            f"numbered anew has another order than the model's scores; {instead or SAY}"
        )


def is_synset(text: str) -> bool:
    """Whether it is one of ImageNet's 1000."""
    return text in _synsets()


def same_form(name: str) -> str:
    """The one spelling of names that look the same: macOS writes an umlaut as two characters (NFD)."""
    return unicodedata.normalize("NFC", name)


def _as_called(names: Sequence[str], class_names: Names, where: str, instead: str) -> dict[str, int]:
    meant = {name: class_names.classes(name) for name in names}
    unclear = [name for name, classes in meant.items() if len(classes) != 1]
    if unclear:
        raise DatasetError(
            f"{where} has {len(unclear)} of {len(names)} names that mean none or several of the model's classes: "
            f"{first_few(unclear)}; the model's are {first_few(class_names.names)}; {instead or RENAME}"
        )
    found = {name: next(iter(classes)) for name, classes in meant.items()}
    if len(set(found.values())) < len(found):
        twice = [name for name, index in found.items() if list(found.values()).count(index) > 1]
        raise DatasetError(f"{where} has two names of one class: {first_few(twice)}; rename one, or join them")
    return found


def _numbered(names: Sequence[str], num_classes: int | None, where: str, instead: str) -> dict[str, int]:
    found = {name: int(name) for name in names}
    numbers = set(found.values())
    if numbers == set(range(1, IMAGENET_CLASSES + 1)) and num_classes in (None, IMAGENET_CLASSES):
        renamed = instead or f"rename them: {RENAMED}"
        raise DatasetError(f"{where} has the classes 1 ... {IMAGENET_CLASSES}: {DEVKIT}; {renamed}")
    if len(numbers) < len(found):
        raise DatasetError(f"{where} has a number twice, with and without zeros before it ({first_few(sorted(found))})")
    if 0 not in numbers or (num_classes is not None and max(numbers) >= num_classes):
        classes = "begin at 0" if num_classes is None else f"are 0 ... {num_classes - 1}"
        ordered = sorted(names, key=int)
        raise DatasetError(
            f"{where} has the classes {first_few(ordered)}; classes that are called by numbers {classes}: "
            f"{instead or NUMBERED}"
        )
    check_not_renumbered(numbers, num_classes, where, instead=instead)
    return found


def _named(names: Sequence[str], where: str) -> dict[str, int]:
    """Of ImageNet's names or synsets. Where all are there in order, names that several classes have are clear too."""
    meant = [_imagenet_classes(name) for name in names]
    if len(names) == IMAGENET_CLASSES and all(index in classes for index, classes in enumerate(meant)):
        return {name: index for index, name in enumerate(names)}
    unclear = [name for name, classes in zip(names, meant, strict=True) if len(classes) != 1]
    if unclear:
        raise DatasetError(
            f"{where} has {len(unclear)} class names that mean none or several of ImageNet's: {first_few(unclear)}; "
            f"take the synsets, such as n01440764"
        )
    found = {name: next(iter(classes)) for name, classes in zip(names, meant, strict=True)}
    if len(set(found.values())) < len(found):
        raise DatasetError(f"{where} has two names of one class; take the synsets, such as n01440764")
    return found


def _in_small(name: str) -> str:
    """With one sign between words. Not at the ends: -1 is not 1."""
    return same_form(name).strip().translate(APART).casefold()


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def _imagenet_classes(name: str) -> frozenset[int]:
    """The classes that a synset, a name or a list of names that starts with the first one may mean."""
    if is_synset(name):
        return frozenset({_synsets()[name]})
    first = same_form(name).partition(",")[0].replace("_", " ").strip()
    return _by_name().get(first) or _by_name().get(first.casefold(), frozenset())


@cache
def _synsets() -> Mapping[str, int]:
    return {synset: index for index, synset in enumerate(imagenet_synsets())}


@cache
def _by_name() -> Mapping[str, frozenset[int]]:
    """As the names are written and in small letters, with and without what tells equal ones apart: "crane (bird)"."""
    found: dict[str, set[int]] = defaultdict(set)
    for index, name in enumerate(imagenet_labels()):
        for form in (name, name.partition(" (")[0]):
            found[form].add(index)
            found[form.casefold()].add(index)
    return {name: frozenset(classes) for name, classes in found.items()}
