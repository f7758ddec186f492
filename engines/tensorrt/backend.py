"""TensorRT and TensorRT-RTX as a backend. They are imported where an engine is built or loaded."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Facts, Format, Manifest, PartManifest
from conformer_fast.bundles.signature import is_pair
from conformer_fast.errors import (
    MOST_OF_A_COMMAND,
    ArgumentTypeError,
    BackendError,
    BundleError,
    EngineError,
    EngineMismatchError,
    one_of,
    several,
    shown,
)
from conformer_fast.inference.lower import Lowered
from conformer_fast.model.detector.detect import Operators
from conformer_fast.model.precision import DTYPES, around
from conformer_fast.model.recipe import input_side
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Shapes, check_shapes, square_shapes

from ..base import Backend, Contents, Engine, Precisions, Settings
from ..cache import cached
from ..ceiling import Ceiling, by_pytorch
from ..cuda import between_networks, current_device, in_8_bits
from ..detector import shapes_for
from ..onnx.graph import typed_graph
from . import FLAVORS
from .flavors import Flavor, get_flavor, gpu_target

if TYPE_CHECKING:
    from .engine import TensorRTEngine

PLAN = "model.plan"


@dataclass(frozen=True)
class TensorRT(Backend):
    """Engines for NVIDIA GPUs that take certain shapes, built at once and kept on disk.

    shapes:  of images that the engine takes, one or several; default: batches of 1 to 64 of the usual size, 224 x 224
    flavor:  "tensorrt", "tensorrt-rtx" or "auto": TensorRT if it is installed and there is a GPU, else TensorRT-RTX
    targets: compute capabilities to build for, as "sm86"; none: the GPU here. Only TensorRT-RTX takes any, and only for
             a bundle.
    """

    shapes: tuple[Shapes, ...] = ()
    flavor: str = "auto"
    targets: tuple[str, ...] = ()

    name: ClassVar[str] = "tensorrt"
    hardware: ClassVar[str] = "GPU"
    device_type: ClassVar[str] = "cuda"
    packages: ClassVar[tuple[str, ...]] = ("tensorrt", "tensorrt-rtx-cu13-bindings", "onnx", "onnxruntime")
    asked_only: ClassVar[bool] = True  # it takes certain shapes only, and long to build
    ahead: ClassVar[bool] = True
    format: ClassVar[Format] = Format(
        (PLAN,), {"flavor": str, "version": str, "targets": list, "gpu": str}, sized=True, read_once=(PLAN,)
    )

    def __post_init__(self) -> None:
        shapes = [self.shapes] if isinstance(self.shapes, Shapes) else several("shapes", self.shapes)
        if not all(isinstance(one, Shapes) for one in shapes):
            raise ArgumentTypeError(
                f"shapes must be Shapes(batch=..., height=..., width=...), or some, got {shown(repr(shapes))}"
            )
        object.__setattr__(self, "shapes", tuple(shapes))
        targets = several("targets", self.targets)
        if not all(isinstance(target, str) for target in targets):
            raise ArgumentTypeError(f'targets must be names such as "sm86", got {shown(repr(targets))}')
        object.__setattr__(self, "targets", tuple(targets))
        one_of("flavor", self.flavor, ("auto", *FLAVORS))

    def missing(self) -> str | None:
        if not torch.cuda.is_available() or torch.version.hip:
            return "no CUDA device"
        if not any(map(find_spec, ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"))):
            return 'TensorRT not installed: pip install "conformer-fast[tensorrt]"'
        if find_spec("onnx") is None:
            return 'onnx not installed: pip install "conformer-fast[tensorrt]"'
        return None

    def precisions(self) -> Precisions:
        return Precisions(tuple(DTYPES), in_8_bits())

    def ceiling(self, precision: str, device: str) -> Ceiling | None:
        return by_pytorch(precision, device)

    def torch_device(self) -> str:
        return current_device()

    def for_model(self, reference: Lowered) -> TensorRT:
        if not isinstance(reference, Conformer):
            return replace(self, shapes=shapes_for(reference, self.shapes))
        shapes = self.shapes or (square_shapes(input_side(reference.recipe, reference.config)),)
        check_shapes(shapes, reference.config, reference.pad)
        return replace(self, shapes=shapes)

    def operators(self, device: str) -> Operators:
        return between_networks(device)

    def for_images(self, shape: Sequence[int]) -> TensorRT:
        B, _, H, W = shape
        return replace(self, shapes=(Shapes((1, B, B), (H, H, H), (W, W, W)),))

    def elsewhere(self) -> Mapping[str, Any]:
        return {"shapes": list(self.shapes), "flavor": get_flavor(self.flavor).name}

    def engine(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> TensorRTEngine:
        from .engine import TensorRTEngine

        if self.targets:
            raise BackendError(f"an engine for {', '.join(self.targets)} is built into a bundle: conformer_fast.build")
        device = torch.device(settings.device)
        with torch.cuda.device(device):
            flavor = get_flavor(self.flavor)
            plan = self._plan(self.graph(reference, settings, outputs), settings.precision, flavor)
        return TensorRTEngine(plan, flavor, outputs, device)

    def graph(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> bytes:
        return typed_graph(reference, outputs, settings.precision, settings.quantization)

    def check(self, settings: Settings) -> None:
        from .plan import check_options

        check_options(get_flavor(self.flavor), self.targets, settings.precision)

    def contents(
        self,
        reference: Lowered,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        """The plan, for the GPUs that it was built for."""
        from .engine import TensorRTEngine
        from .plan import targets_of

        assert graph is not None
        precision, flavor = settings.precision, get_flavor(self.flavor)
        plan = engine.plan if isinstance(engine, TensorRTEngine) else self._plan(graph, precision, flavor)
        parts = {
            "products": precision,
            "attention, maps": around(precision),
            "tokens, norms, softmax, heads, images, outputs": "fp32",
        }
        runtime = {
            "flavor": flavor.name,
            "version": flavor.version,
            "targets": list(targets_of(flavor, self.targets)),
            "gpu": self._gpu() or "",
        }
        return Contents({PLAN: plan}, parts, runtime, self.shapes)

    def fits(self, manifest: Facts) -> str:
        needed = manifest.runtime
        try:
            flavor = get_flavor(needed["flavor"])
        except (BackendError, ValueError) as error:
            raise EngineMismatchError("flavor", needed["flavor"], f"not usable: {error}", manifest.rebuild) from error
        if _release(flavor.version) != _release(needed["version"]):
            raise EngineMismatchError("version", needed["version"], flavor.version, manifest.rebuild)
        target = gpu_target()
        if target not in needed["targets"]:
            expected = f"one of {', '.join(map(str, needed['targets']))}"
            raise EngineMismatchError("GPU", expected, target or "none: no CUDA device", manifest.rebuild)
        here = torch.cuda.get_device_name()
        if needed["gpu"] not in ("", here):
            warnings.warn(
                f"the engine was built on {shown(needed['gpu'])}, here is {here}: TensorRT promises nothing for "
                f"another GPU; build it again here: {shown(manifest.rebuild, MOST_OF_A_COMMAND)}",
                stacklevel=2,
            )
        return self.torch_device()

    def for_bundle(self, manifest: Manifest | PartManifest) -> TensorRT:
        built = TensorRT(manifest.shapes, manifest.runtime["flavor"])
        if self not in (TensorRT(), built):
            raise BackendError("the bundle says for what its engine was built; load it without shapes, flavor, targets")
        return built

    def restore(self, stored: StoredEngine, settings: Settings, key: bytes | None) -> TensorRTEngine:
        from .engine import TensorRTEngine
        from .kernel_cache import RuntimeCacheFile

        manifest, flavor = stored.manifest, get_flavor(self.flavor)
        secret = key is not None and not is_pair(key)  # a public key would sign for everybody
        keep = flavor.has_runtime_cache and (secret or not stored.signed)
        kept = RuntimeCacheFile(stored.folder, key, stored.prefix) if keep else None
        try:
            return TensorRTEngine(stored.read(PLAN), flavor, manifest.outputs, torch.device(settings.device), kept)
        except EngineError as error:
            raise BundleError(
                f"{stored.folder / (stored.prefix + PLAN)} cannot be loaded: {error}; make it again: "
                f"{shown(manifest.rebuild, MOST_OF_A_COMMAND)}"
            ) from error

    def served(self, stored: StoredEngine, name: str, instances: int) -> Mapping[str, bytes]:
        from .triton_server import model_files

        return model_files(stored, PLAN, name, instances)

    def _plan(self, graph: bytes, precision: str, flavor: Flavor) -> bytes:
        """The engine of a graph; from the cache if it is there."""
        from .plan import engine_from_onnx, targets_of

        fields = {
            "backend": self.name,
            "precision": precision,
            "onnx": hashlib.sha256(graph).hexdigest(),
            "shapes": [shapes.to_json() for shapes in self.shapes],
            "flavor": flavor.name,
            "version": flavor.version,
            "targets": list(targets_of(flavor, self.targets)),
            "gpu": self._gpu(),
        }
        return cached(fields, lambda: engine_from_onnx(graph, self.shapes, flavor, self.targets, precision))

    def _gpu(self) -> str | None:
        """The GPU that an engine is built on and for; None where targets are named."""
        return None if self.targets else torch.cuda.get_device_name()


def _release(version: str) -> list[str]:
    """major.minor.patch, to which plans are bound."""
    return version.split(".")[:3]
