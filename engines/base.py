"""What a backend is: one class, whose instances carry its options.

A new one is a folder here, with a class that derives from `Backend`, and a line in registry.py. It is a frozen
dataclass: its fields are its options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Facts, Format, Manifest, PartManifest
from conformer_fast.errors import BackendError, BundleError
from conformer_fast.inference.lower import Lowered
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.detector.detect import PYTORCH, Networks, Operators
from conformer_fast.model.detector.reference import Detector
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Shapes

from .ceiling import Ceiling

Engine = Callable[[Tensor], tuple[Tensor, ...]]
"""images (B, in_channels, H, W) on its device -> one fp32 tensor (B, ...) per output."""


class Precisions(NamedTuple):
    """native: those of this hardware, fp32 first, in general the fastest last; none if all are calibrated. calibrated:
    those that take a Quantization."""

    native: tuple[str, ...]
    calibrated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How a model runs. device: where its images and results are; quantization: of products in 8 bits."""

    backend: Backend
    precision: str
    device: str = "cpu"
    quantization: Quantization | None = None


@dataclass(frozen=True)
class Contents:
    """What the bundle of an engine has, beside what all bundles have.

    files:      by name, all of `Backend.format`'s among them
    precisions: what each part of the model is computed in
    runtime:    what the engine is for, with the keys of `Backend.format`
    shapes:     of images that it takes; none: any
    """

    files: Mapping[str, bytes]
    precisions: Mapping[str, str]
    runtime: Mapping[str, Any]
    shapes: Sequence[Shapes] = field(default=())


class Backend(ABC):
    """Makes engines, and the bundles that hold them."""

    name: ClassVar[str]
    hardware: ClassVar[str]  # for people: "GPU"
    device_type: ClassVar[str]  # of PyTorch's devices: where its engines run
    asked_only: ClassVar[bool] = False  # "auto" leaves it out
    taken_for: ClassVar[tuple[str, ...]] = ()  # the precisions for which "auto" takes it; none: all
    runs_detectors: ClassVar[bool] = True  # and not Conformers alone
    format: ClassVar[Format]  # of its bundles
    ahead: ClassVar[bool] = False  # its engines may be for other machines: a bundle says how far their graph is
    packages: ClassVar[tuple[str, ...]] = ()  # that it runs by, as pip calls them
    shapes: tuple[Shapes, ...] = ()  # of images that its engines take; none: any

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""

    @abstractmethod
    def precisions(self) -> Precisions:
        """What it has here. Only asked if nothing is missing."""

    def fastest(self) -> tuple[str, str]:
        """The native precision that "auto" takes, and why, in a few words. Only asked if there is one."""
        native = self.precisions().native
        return native[-1], f"the fastest precision of the {self.hardware}" if len(native) > 1 else "its precision here"

    def devices(self) -> Mapping[str, str]:
        """What its option `device` may name here, if it has one, and what each is."""
        return {}

    def speeds(self) -> Mapping[str, float]:
        """How many times as fast as in fp32 it is here in other native precisions, if that can be measured."""
        return {}

    def ceiling(self, precision: str, device: str) -> Ceiling | None:
        """What this machine reaches at most in this precision, measured in a few seconds, once a process; None where
        nothing is. device: where the images are"""
        return None

    def torch_device(self) -> str:
        """Where its images and results are: the current device of its type."""
        return self.device_type

    def for_model(self, reference: Lowered) -> Backend:
        """The same with all that was left open filled in. Raises ArgumentError for options that do not fit the
        model."""
        return self

    def refuses(self, reference: Lowered, quantization: Quantization | None) -> str | None:
        """Why it cannot run this model so; None if it can."""
        return None

    def for_images(self, shape: Sequence[int]) -> Backend:
        """The same for engines that take batches up to this shape, (B, in_channels, H, W), if any cannot."""
        return self

    def elsewhere(self) -> Mapping[str, Any]:
        """Its options that make the same engine on another machine, for that one."""
        return {}

    @abstractmethod
    def engine(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> Engine:
        """An engine that returns these outputs (names of InferenceConformer.outputs), on the settings' device."""

    def whole(self, detector: Detector) -> Networks | None:
        """What computes a detector's networks without an engine for each; None if engines do."""
        return None

    def operators(self, device: str) -> Operators:
        """What is computed between a detector's networks, which are on this device."""
        return PYTORCH

    def graph(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> bytes | None:
        """The ONNX graph that its engines are built from, if they are."""
        return None

    def check(self, settings: Settings) -> None:
        """Raises BackendError where no bundle of these settings could be made here, ArgumentError for a wrong
        option."""
        return None

    def contents(
        self,
        reference: Lowered,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        """What the bundle of an engine holds.

        graph:  what `graph` returns
        engine: made by `engine` with the same arguments; None: there is none yet, so it is built for its bundle alone
        """
        raise NotImplementedError

    def fits(self, manifest: Facts) -> str:
        """The device that runs the bundle's engine here. Raises EngineMismatchError if there is none."""
        raise NotImplementedError

    def for_bundle(self, manifest: Manifest | PartManifest) -> Backend:
        """The same with what the bundle says of an engine. Raises BackendError for options that say it too."""
        return self

    def restore(self, stored: StoredEngine, settings: Settings, key: bytes | None) -> Engine:
        """The engine that is stored in a bundle that `fits`. key: what the bundle was signed with, if it was given.

        Raises BundleError if it holds something else than it says.
        """
        raise NotImplementedError

    def served(self, stored: StoredEngine, name: str, instances: int) -> Mapping[str, bytes]:
        """The files of a model of NVIDIA Triton Inference Server that runs the bundle's engine, by their paths.

        name: the model's; instances: how many batches run at once on each GPU

        Raises BundleError if the server runs no such engine.
        """
        raise BundleError(
            f"{stored.folder} holds an engine of backend {self.name!r}, which the server does not run; build one that "
            f"it does: conformer_fast.build"
        )

    def tuner(self, device: str) -> Tuner:
        """What measures its kernels on a device. Raises BackendError if nothing is chosen by measurement."""
        raise BackendError(f"backend {self.name!r} has no kernels to tune")


class Tuned(Protocol):
    """What was measured of one problem that kernels are posed. rule: what is taken unmeasured; choice: what to take;
    facts: everything, as JSON values."""

    @property
    def problem(self) -> str: ...
    @property
    def rule(self) -> Any: ...
    @property
    def choice(self) -> Any: ...
    @property
    def facts(self) -> dict[str, Any]: ...


class Tuner(Protocol):
    """Measures the kernels of models on one GPU, and keeps what it finds in a file."""

    gpu: str
    file: Path

    def rounded(self, batch: int) -> int:
        """How many images run for a batch of so many."""

    def tune(
        self, network: InferenceConformer, batches: Sequence[int], side: int, skip: Container[str]
    ) -> Iterator[tuple[int, Mapping[str, Tuned] | None]]:
        """Measures the problems that batches of images of side x side pose, but those in `skip`.

        Yields each batch and what was found, by the problem's name, once it is in the file; None in its place if the
        GPU has no room for the batch.
        """


class Outcome(NamedTuple):
    """What a Runner returns. how: what ran, in one line; device: on what; values: the outputs, in order; by_pytorch:
    how many of its calls PyTorch took over."""

    how: str
    device: str
    values: tuple[Tensor, ...]
    by_pytorch: int = 0


class Runner(ABC):
    """Runs the network in another way than a backend's engines do, to be compared with them."""

    def slow(self) -> str | None:
        """Why it would take minutes here; None if it would not."""
        return None

    def prepare(self) -> None:
        """What must be done before its first run, and before anything imports what it runs."""
        return None

    @abstractmethod
    def run(
        self,
        reference: Conformer,
        outputs: Sequence[str],
        precision: str,
        quantization: Quantization | None,
        images: Tensor,
    ) -> Outcome:
        """The outputs called `outputs`. images: (B, in_channels, H, W), on the CPU

        Raises BackendError where it cannot be had, or not in this precision.
        """
