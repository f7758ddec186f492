"""info(): what this installation can do here, and why."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

import torch

from ..engines.base import Backend
from ..engines.registry import BACKENDS, choose, make
from ..extension import unusable
from ..model.config import PACKAGED, VARIANTS
from ..storage.paths import cache_root
from ..tables import Column, Table
from ..version import __version__

PACKAGES = ("torch", "numpy", "pillow", "pyarrow", "matplotlib")  # beside the backends' own
NAMED = Table(Column(), Column(width=26), Column())


@dataclass(frozen=True)
class Ability:
    """Whether a backend runs here, and if not, why. precisions: those that it has here; speeds: how many times as fast
    as in fp32 it is in some of them, as measured; devices: what its option `device` may name, and what each is."""

    available: bool
    reason: str | None
    precisions: tuple[str, ...]
    speeds: dict[str, float]
    devices: dict[str, str]

    def __str__(self) -> str:
        devices = "; ".join(f"{name} is {what}" for name, what in self.devices.items())
        has = ", ".join(map(self._named, self.precisions))
        return self.reason or f"available: {has}" + (f" ({devices})" if devices else "")

    def _named(self, precision: str) -> str:
        speed = self.speeds.get(precision)
        return precision if speed is None else f"{precision} ({speed:.2f}x of fp32, measured)"


@dataclass(frozen=True)
class Auto:
    """What compile() takes here, and why."""

    backend: str
    precision: str
    device: str
    reason: str


@dataclass(frozen=True)
class ImagePath:
    """Whether pictures go through the extension, by which instructions of the processor, and if not, why."""

    extension: bool
    instructions: str | None
    reason: str | None


@dataclass(frozen=True)
class Info:
    """What an installation has. conformer_fast, python: versions; threads: of PyTorch; packages: their versions, None
    if they are not installed; cache: the folder of what is kept; models: names for `create_model`."""

    conformer_fast: str
    python: str
    system: str
    machine: str
    threads: int
    packages: dict[str, str | None]
    backends: dict[str, Ability]
    auto: Auto
    images: ImagePath
    cache: str
    models: tuple[str, ...]

    def __str__(self) -> str:
        from ..preprocessing.cpu import image_path

        packages = {name: version or "not installed" for name, version in self.packages.items()}
        backends = {name: str(ability) for name, ability in self.backends.items()}
        lines = [
            f"conformer_fast: {self.conformer_fast}",
            f"python: {self.python}",
            f"machine: {self.system} {self.machine}, {self.threads} threads",
            "packages:",
            *_named(packages),
            "backends:",
            *_named(backends),
            f"auto: {self.auto.reason}",
            f"images: {image_path()}",
            f"cache: {self.cache}",
            f"models: {', '.join(self.models)}",
        ]
        return "\n".join(lines)


def info() -> Info:
    """What this installation can do here, and why."""
    auto = choose()
    backends = {name: make(name) for name in BACKENDS}
    own = (package for backend in backends.values() for package in backend.packages)
    missing = {name: backend.missing() for name, backend in backends.items()}
    return Info(
        conformer_fast=__version__,
        python=platform.python_version(),
        system=platform.system(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        packages=_versions((*PACKAGES, *own)),
        backends={name: _ability(backends[name], why) for name, why in missing.items()},
        auto=Auto(auto.backend.name, auto.precision, auto.backend.torch_device(), auto.reason),
        images=_images(),
        cache=str(cache_root()),
        models=(*VARIANTS, *PACKAGED),
    )


def _ability(backend: Backend, missing: str | None) -> Ability:
    if missing is not None:
        return Ability(False, missing, (), {}, {})
    precisions = sum(backend.precisions(), ())
    return Ability(True, None, precisions, dict(backend.speeds()), dict(backend.devices()))


def _versions(packages: Iterable[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _images() -> ImagePath:
    if unusable():
        return ImagePath(False, None, unusable())
    from .. import _C

    return ImagePath(True, _C.instruction_sets()[0], None)


def _named(values: dict[str, str]) -> list[str]:
    return NAMED.lines(("", name, value) for name, value in values.items())
