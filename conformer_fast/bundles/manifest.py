"""A bundle's manifest: what the folder holds, what it was made from, what it needs; a file that shows every change.

manifest.json is, byte for byte, the dump of its content. Its digest covers the rest of it, and the rest has the size
and sha256 of every other file, so no byte of a bundle changes unnoticed. That finds damage. Against somebody who writes
a new digest too, there is a signature (signature.py). Nothing is interpreted before it is verified.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from ..errors import BundleError
from ..model.config import ConformerConfig
from ..model.detector.config import DetectorConfig
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
NETWORKS = ("proposer", "boxes", "masks")  # of a detector; the last one only if it has masks
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


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What every bundle says. All values are JSON's.

    backend, precision: as in Settings; precisions: that of each part of the model
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
    runtime: Mapping[str, Any]
    preprocessing: Mapping[str, Any] | None
    labels: str | None
    sha256: Mapping[str, str | None]
    rebuild: str
    measured: Mapping[str, Any] | None = None
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    conformer_fast: str = __version__

    def _recipe(self, num_heads: int) -> Recipe:
        given = self.preprocessing or {}
        return Recipe(num_heads=num_heads, **{name: given.get(name) for name in ("size", "mean", "std")})

    def _to_json(self, **of_the_model: Any) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "conformer_fast": self.conformer_fast,
            "backend": self.backend,
            "precision": self.precision,
            "precisions": dict(self.precisions),
            **of_the_model,
            "runtime": dict(self.runtime),
            "preprocessing": self.preprocessing and dict(self.preprocessing),
            "labels": self.labels,
            "sha256": dict(self.sha256),
            "files": {name: file._asdict() for name, file in self.files.items()},
            "measured": self.measured and dict(self.measured),
            "rebuild": self.rebuild,
        }

    def _check_runtime(self, form: Format) -> None:
        if {name: type(entry) for name, entry in self.runtime.items()} != form.runtime:
            raise ValueError(f"its runtime must have {', '.join(form.runtime)}, got {self.runtime}")

    def _check_files(self, names: Iterable[str]) -> None:
        missing = sorted(set(names) - self.files.keys())
        if missing:
            raise ValueError(f"it lacks the files {', '.join(missing)}")


@dataclass(frozen=True, kw_only=True)
class Manifest(Facts):
    """What a Conformer's bundle is. Other than `config`, `shapes` and `structure`, all values are JSON's.

    config, pad: of the model
    outputs:     names of the engine's tensors, in order (see InferenceConformer)
    structure:   what the model's forward returns, with names of outputs for tensors
    shapes:      of images that the engine takes; none: any
    """

    config: ConformerConfig
    pad: Pad
    outputs: tuple[str, ...]
    structure: Any
    shapes: tuple[Shapes, ...]

    @property
    def recipe(self) -> Recipe:
        """What the model was trained for; its labels are in a file. Raises ArgumentError for what cannot be."""
        return self._recipe(self.config.num_heads)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, without digest and signature.

        Raises BundleError when the structure has a container that is not in CONTAINERS.
        """
        return self._to_json(
            config=asdict(self.config),
            pad=self.pad,
            outputs=list(self.outputs),
            structure=_structure_to_json(self.structure),
            shapes=[shapes.to_json() for shapes in self.shapes],
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote. Raises ValueError or TypeError, naming the entry, for anything else."""
        entries = _entries(cls, value, _KINDS)
        if entries["pad"] not in ("stem", "none"):
            raise ValueError(f"it has the pad {entries['pad']!r}")
        entries |= {
            "config": ConformerConfig(**entries["config"]),
            "outputs": tuple(entries["outputs"]),
            "structure": _structure_from_json(entries["structure"]),
            "shapes": tuple(map(Shapes.from_json, entries["shapes"])),
        }
        leaves = _leaves(entries["structure"])
        if leaves != entries["outputs"] or not 0 < len(leaves) == len(set(leaves)):
            raise ValueError(f"its structure {value['structure']} is not made of its outputs {value['outputs']}")
        manifest = cls(**entries)
        manifest.recipe.check(manifest.config)
        return manifest

    def check(self, form: Format) -> None:
        """Raises ValueError, naming the entry, unless it is the manifest of such a bundle."""
        self._check_runtime(form)
        if form.sized and not self.shapes:
            raise ValueError("it names no shapes that its engine takes")
        self._check_files(form.files)

    def all_named(self, names: Iterable[str]) -> set[str]:
        """The files that a Format calls so."""
        return set(names)


class StoredNetwork(NamedTuple):
    """One network of a detector. outputs: names of its engine's tensors, in order; onnx: the sha256 of its graph; None
    where there is none; shapes: of what its engine takes; none: any."""

    outputs: tuple[str, ...]
    onnx: str | None
    shapes: tuple[Shapes, ...]


@dataclass(frozen=True, kw_only=True)
class PartManifest(Facts):
    """What one network's part of a detector's bundle is: with the names of files and the sha256 of its own.

    name: of the network; config: of the detector
    """

    name: str
    config: DetectorConfig
    outputs: tuple[str, ...]
    shapes: tuple[Shapes, ...]


@dataclass(frozen=True, kw_only=True)
class DetectorManifest(Facts):
    """What a detector's bundle is. The files of each network have its name and a point before their own.

    networks: by name
    """

    config: DetectorConfig
    networks: Mapping[str, StoredNetwork]

    @property
    def recipe(self) -> Recipe:
        """As a Manifest's."""
        return self._recipe(self.config.backbone.num_heads)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values, without digest and signature."""
        networks = {
            name: {"outputs": list(outputs), "onnx": onnx, "shapes": [one.to_json() for one in shapes]}
            for name, (outputs, onnx, shapes) in self.networks.items()
        }
        return self._to_json(config=asdict(self.config), networks=networks)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DetectorManifest:
        """The manifest that `to_json` wrote. Raises ValueError or TypeError, naming the entry, for anything else."""
        entries = _entries(cls, value, _DETECTOR_KINDS)
        config = entries["config"]
        if not isinstance(config.get("backbone"), dict):
            raise TypeError("its config lacks a backbone")
        entries |= {
            "config": DetectorConfig(**config | {"backbone": ConformerConfig(**config["backbone"])}),
            "networks": {name: _network_from_json(name, entry) for name, entry in entries["networks"].items()},
        }
        manifest = cls(**entries)
        manifest.recipe.check(manifest.config.backbone)
        return manifest

    def check(self, form: Format) -> None:
        """Raises ValueError, naming the entry, unless it is the manifest of such a bundle."""
        self._check_runtime(form)
        needed = NETWORKS if self.config.masks else NETWORKS[:-1]
        if self.networks.keys() != {*needed}:
            raise ValueError(f"its networks must be {', '.join(needed)}, got {', '.join(self.networks)}")
        if form.sized and not all(network.shapes for network in self.networks.values()):
            raise ValueError("it names no shapes that its engines take")
        if self.labels is None:
            raise ValueError("it has no labels, which a detector's classes need")
        self._check_files(self.all_named(form.files))

    def all_named(self, names: Iterable[str]) -> set[str]:
        """The files that a Format calls so, of all networks."""
        return {prefix_of(network) + name for name in names for network in self.networks}

    def part(self, name: str) -> PartManifest:
        """Of one network."""
        facts = {known.name: getattr(self, known.name) for known in fields(Facts)}
        outputs, onnx, shapes = self.networks[name]
        facts["sha256"] = {**self.sha256, "onnx": onnx}
        prefix = prefix_of(name)
        facts["files"] = {
            file.removeprefix(prefix): stored for file, stored in self.files.items() if file.startswith(prefix)
        }
        return PartManifest(name=name, config=self.config, outputs=outputs, shapes=shapes, **facts)


def prefix_of(network: str) -> str:
    """Of the names of the files that are one network's."""
    return f"{network}."


def manifest_from_json(value: Mapping[str, Any]) -> Manifest | DetectorManifest:
    """Raises as their `from_json`."""
    return DetectorManifest.from_json(value) if "networks" in value else Manifest.from_json(value)


_FACTS: dict[str, Any] = {
    **dict.fromkeys(("conformer_fast", "backend", "precision", "rebuild"), str),
    **dict.fromkeys(("precisions", "config", "runtime", "sha256", "files"), dict),
    **dict.fromkeys(("preprocessing", "measured"), dict | None),
    "labels": str | None,
}
_KINDS: dict[str, Any] = {**_FACTS, "pad": str, "outputs": list, "shapes": list, "structure": dict | str}
_DETECTOR_KINDS: dict[str, Any] = {**_FACTS, "networks": dict}


def _entries(kind: type[Facts], value: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a manifest, with their types and files checked."""
    entries = {name: entry for name, entry in value.items() if name != "schema"}
    names = {known.name for known in fields(kind)}
    if set(entries) != names:
        raise ValueError(f"its entries {', '.join(sorted(set(entries) ^ names))} are missing or unknown")
    for name, types in kinds.items():
        if not isinstance(entries[name], types):
            raise TypeError(f"its {name} has the wrong type, {type(entries[name]).__name__}")
    if entries["precision"] not in PRECISIONS:
        raise ValueError(f"it has the precision {entries['precision']!r}")
    files = {name: _stored(name, entry) for name, entry in entries["files"].items()}
    if entries["labels"] not in (None, *files):
        raise ValueError(f"it lacks the file {entries['labels']}")
    return {**entries, "files": files}


def _network_from_json(name: str, entry: Any) -> StoredNetwork:
    if not isinstance(entry, dict) or set(entry) != {"outputs", "onnx", "shapes"}:
        raise TypeError(f"its network {name} needs outputs, onnx and shapes, got {entry!r}")
    outputs, onnx, shapes = entry["outputs"], entry["onnx"], entry["shapes"]
    if not isinstance(outputs, list) or not all(isinstance(output, str) for output in outputs) or not outputs:
        raise TypeError(f"its network {name} has the outputs {outputs!r}, which are no names")
    if not isinstance(onnx, str | None) or not isinstance(shapes, list):
        raise TypeError(f"its network {name} has the onnx {onnx!r} and the shapes {shapes!r}")
    return StoredNetwork(tuple(outputs), onnx, tuple(map(Shapes.from_json, shapes)))


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
