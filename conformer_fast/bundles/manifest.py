"""A bundle's manifest: what the folder holds, what it was made from, what it needs; a file that shows every change.

manifest.json is, byte for byte, the dump of its content. Its digest covers the rest of it, and the rest has the size
and sha256 of every other file, so no byte of a bundle changes unnoticed. That finds damage. Against somebody who writes
a new digest too, there is a signature (signature.py). Nothing is interpreted before it is verified.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from ..errors import BundleError
from ..model.config import ConformerConfig
from ..model.names import PRECISIONS
from ..model.outputs import Softmax
from ..model.recipe import Recipe
from ..model.reference import ConformerFeatures, ConformerOutput
from ..model.shapes import Pad, Shapes
from ..version import __version__

SCHEMA = 3
MANIFEST = "manifest.json"
RUNTIME_CACHE = "runtime.cache"  # what a runtime keeps in the folder; no part of the bundle
LABELS = "labels.txt"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
SHA256 = re.compile("[0-9a-f]{64}")  # a part of it is in the name that a file has while it is written

CONTAINERS: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "ConformerOutput": ConformerOutput,
    "ConformerFeatures": ConformerFeatures,
    "Softmax": Softmax,
}


class Format(NamedTuple):
    """What is special to the bundles of one backend.

    files:     that they must have, beside the labels
    runtime:   the keys of Manifest.runtime, and their values' types
    sized:     whether the engine takes the shapes of its manifest only
    read_once: those files that a loaded model reads once, and right away
    """

    files: tuple[str, ...]
    runtime: Mapping[str, type]
    sized: bool = False
    read_once: tuple[str, ...] = ()


class StoredFile(NamedTuple):
    """What a file of a bundle must be: its sha256 in hex, its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle is. Other than `config`, `shapes` and `structure`, all values are JSON's.

    backend, precision: as in Settings; precisions: that of each part of the model
    config, pad:        of the model
    outputs:            names of the engine's tensors, in order (see InferenceConformer)
    structure:          what the model's forward returns, with names of outputs for tensors
    shapes:             of images that the engine takes; none: any
    runtime:            what the engine was built for; its keys are in the backend's Format
    preprocessing:      from a picture to the engine's images; None if these are not RGB. Its mean, std and size (None
                        if the weights did not say it) are `recipe`.
    labels:             the file of class names, one a line; None without heads
    sha256:             of the reference's "weights" and of the "onnx" graph; None where there is none
    measured:           error and agreement with the reference, of how many images and by which program; None if not
                        measured
    rebuild:            the command that makes the bundle again
    files, conformer_fast: what the folder holds, and the version that wrote it; `write_bundle` fills in the files
    """

    backend: str
    precision: str
    precisions: Mapping[str, str]
    config: ConformerConfig
    pad: Pad
    outputs: tuple[str, ...]
    structure: Any
    shapes: tuple[Shapes, ...]
    runtime: Mapping[str, Any]
    preprocessing: Mapping[str, Any] | None
    labels: str | None
    sha256: Mapping[str, str | None]
    rebuild: str
    measured: Mapping[str, Any] | None = None
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    conformer_fast: str = __version__

    @property
    def recipe(self) -> Recipe:
        """What the model was trained for; its labels are in a file. Raises ArgumentError for what cannot be."""
        given = self.preprocessing or {}
        return Recipe(num_heads=self.config.num_heads, **{name: given.get(name) for name in ("size", "mean", "std")})

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, without digest and signature.

        Raises BundleError when the structure has a container that is not in CONTAINERS.
        """
        return {
            "schema": SCHEMA,
            "conformer_fast": self.conformer_fast,
            "backend": self.backend,
            "precision": self.precision,
            "precisions": dict(self.precisions),
            "config": asdict(self.config),
            "pad": self.pad,
            "outputs": list(self.outputs),
            "structure": _structure_to_json(self.structure),
            "shapes": [shapes.to_json() for shapes in self.shapes],
            "runtime": dict(self.runtime),
            "preprocessing": self.preprocessing and dict(self.preprocessing),
            "labels": self.labels,
            "sha256": dict(self.sha256),
            "files": {name: file._asdict() for name, file in self.files.items()},
            "measured": self.measured and dict(self.measured),
            "rebuild": self.rebuild,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote. Raises ValueError or TypeError, naming the entry, for anything else."""
        entries = {name: entry for name, entry in value.items() if name != "schema"}
        names = {known.name for known in fields(cls)}
        if set(entries) != names:
            raise ValueError(f"its entries {', '.join(sorted(set(entries) ^ names))} are missing or unknown")
        for name, kinds in _KINDS.items():
            if not isinstance(entries[name], kinds):
                raise TypeError(f"its {name} has the wrong type, {type(entries[name]).__name__}")
        if entries["precision"] not in PRECISIONS or entries["pad"] not in ("stem", "none"):
            raise ValueError(f"it has the precision {entries['precision']!r} and the pad {entries['pad']!r}")
        files = {name: _stored(name, entry) for name, entry in entries["files"].items()}
        if entries["labels"] not in (None, *files):
            raise ValueError(f"it lacks the file {entries['labels']}")
        entries |= {
            "config": ConformerConfig(**entries["config"]),
            "outputs": tuple(entries["outputs"]),
            "structure": _structure_from_json(entries["structure"]),
            "shapes": tuple(map(Shapes.from_json, entries["shapes"])),
            "files": files,
        }
        leaves = _leaves(entries["structure"])
        if leaves != entries["outputs"] or not 0 < len(leaves) == len(set(leaves)):
            raise ValueError(f"its structure {value['structure']} is not made of its outputs {value['outputs']}")
        manifest = cls(**entries)
        manifest.recipe.check(manifest.config)
        return manifest

    def check(self, form: Format) -> None:
        """Raises ValueError, naming the entry, unless it is the manifest of such a bundle."""
        if {name: type(entry) for name, entry in self.runtime.items()} != form.runtime:
            raise ValueError(f"its runtime must have {', '.join(form.runtime)}, got {self.runtime}")
        if form.sized and not self.shapes:
            raise ValueError("it names no shapes that its engine takes")
        missing = sorted(set(form.files) - self.files.keys())
        if missing:
            raise ValueError(f"it lacks the files {', '.join(missing)}")


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("conformer_fast", "backend", "precision", "pad", "rebuild"), str),
    **dict.fromkeys(("precisions", "config", "runtime", "sha256", "files"), dict),
    **dict.fromkeys(("outputs", "shapes"), list),
    **dict.fromkeys(("preprocessing", "measured"), dict | None),
    "labels": str | None,
    "structure": dict | str,
}


def _stored(name: str, entry: Any) -> StoredFile:
    if not PLAIN_NAME.fullmatch(name) or name == MANIFEST:
        raise ValueError(f"its file's name {name!r} is not a plain one")
    if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != {
        "sha256": str,
        "bytes": int,
    }:
        raise TypeError(f"its file {name} needs sha256 and bytes, got {entry!r}")
    if not SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"its file {name} has the sha256 {entry['sha256']!r}, which is none")
    return StoredFile(**entry)


def _structure_to_json(structure: Any) -> Any:
    if isinstance(structure, str):
        return structure
    for name, kind in CONTAINERS.items():
        if type(structure) is kind:
            return {name: [_structure_to_json(part) for part in structure]}
    raise BundleError(
        f"the model returns a {type(structure).__qualname__}, a class that a bundle cannot restore; compile its state "
        f"dict, or a model that returns lists and plain tuples"
    )


def _structure_from_json(value: Any) -> Any:
    if isinstance(value, str):
        return value
    ((name, parts),) = value.items() if isinstance(value, dict) and len(value) == 1 else ((None, None),)
    if name not in CONTAINERS or not isinstance(parts, list):
        raise ValueError(f"its structure has {value!r}, which is no name and none of {', '.join(CONTAINERS)}")
    kind = CONTAINERS[name]
    return getattr(kind, "_make", kind)(map(_structure_from_json, parts))


def _leaves(structure: Any) -> tuple[str, ...]:
    def walk(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        else:
            for inner in part:
                yield from walk(inner)

    return tuple(walk(structure))
