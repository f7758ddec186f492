"""OpenVINO as a backend. It is imported where an engine is made, so that this module can be without it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import torch

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Facts, Format
from conformer_fast.errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    ConformerFastError,
    EngineMismatchError,
    shown,
    whole,
)
from conformer_fast.inference.lower import Lowered, lower
from conformer_fast.model.precision import FORMATS
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import usual_side

from ..base import Backend, Contents, Engine, Precisions, Settings
from ..ceiling import Ceiling, cpu_memory
from .graph_hash import remembered_sha256

if TYPE_CHECKING:
    from .engine import Input, OpenVINOEngine
    from .ir import IR

XML, WEIGHTS = "model.xml", "model.bin"
REST = "the rest"  # of a model whose products are in 8 bits: a key of its manifest's precisions


@dataclass(frozen=True)
class OpenVINO(Backend):
    """Engines for CPUs, built at the first call with an image size and kept on disk: for each of the first four sizes,
    and for any other.

    threads: cores of the CPU to use; default: as many as PyTorch uses
    device:  another of OpenVINO's devices: "GPU", "GPU.1", "NPU", or "AUTO" and "AUTO:GPU,CPU", which choose among
             them. Images and results are on the CPU all the same. None but the CPU, and AUTO on it, has been run.

    Raises ArgumentError unless `threads` is a whole number, at least 1, and given for the CPU only.
    """

    threads: int | None = None
    device: str = "CPU"

    name: ClassVar[str] = "openvino"
    hardware: ClassVar[str] = "CPU"
    device_type: ClassVar[str] = "cpu"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    format: ClassVar[Format] = Format((XML, WEIGHTS), {"device": str, "capabilities": list, "openvino": str})

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise ArgumentTypeError(f"device is a name such as 'GPU', got {shown(repr(self.device))}")
        if self.threads is not None:
            whole("threads", self.threads)
            if self.device != "CPU":
                raise ArgumentError(f"threads={self.threads} is of the device CPU; leave it out for {self.device!r}")

    def missing(self) -> str | None:
        absent = [package for package in ("openvino", "onnx") if find_spec(package) is None]
        if absent:
            return f'{" and ".join(absent)} not installed: pip install "conformer-fast[cpu]"'
        if self.device == "CPU":
            return None
        from .device import absent as device_absent

        return device_absent(self.device)

    def precisions(self) -> Precisions:
        from .device import native_precisions

        return Precisions(native_precisions(self.device), ("int8",))

    def devices(self) -> dict[str, str]:
        from .device import devices

        return devices()

    def fastest(self) -> tuple[str, str]:
        """On the CPU it is measured: see speed.py."""
        from .speed import GAIN, fastest, speeds

        if self.device != "CPU":
            return self.precisions().native[0], f"nothing is measured on {self.device}"
        try:
            found = speeds()
        except (RuntimeError, ConformerFastError) as error:
            return "fp32", f"nothing else could be measured here ({shown(error)})"
        if not found:
            return super().fastest()
        best = fastest(found)
        if best != "fp32":
            return best, f"{found[best]:.2f}x of fp32 here (measured)"
        why = ", ".join(f"{name} is {speed:.2f}x of it" for name, speed in found.items()) + " here (measured)"
        passed_over = found.get("fp16", 0.0) > GAIN
        return best, why + ", and taken only if asked for: its range is small" * passed_over

    def speeds(self) -> dict[str, float]:
        from .speed import speeds

        if self.device != "CPU":
            return {}
        with suppress(RuntimeError, ConformerFastError):
            return speeds()
        return {}

    def ceiling(self, precision: str, device: str) -> Ceiling | None:
        """Nothing is measured on devices but the CPU."""
        from .products import product_rates

        if self.device != "CPU":
            return None
        around, threads = self._around(precision), self.threads or torch.get_num_threads()
        return Ceiling(product_rates(tuple({precision, around}), threads), cpu_memory(threads), around)

    def _around(self, precision: str) -> str:
        """What lies between products of this precision."""
        return self.fastest()[0] if precision in FORMATS else precision

    def engine(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> OpenVINOEngine:
        from .engine import Computed, OpenVINOEngine

        computed = Computed(settings.precision, self._around(settings.precision))
        return OpenVINOEngine(partial(self._ir, reference, settings, outputs), computed, self.threads, self.device)

    def _ir(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> IR:
        from .ir import cached_ir

        graph = cache(partial(self.graph, reference, settings, outputs))  # written once, for its hash and for the IR
        sha256 = remembered_sha256(reference, outputs, settings.quantization, self._attends_in_8_bits(settings), graph)
        return cached_ir(graph, sha256, settings.precision)

    def graph(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> bytes:
        """In fp32 with 8-bit products marked; the engine decides in what the rest is computed."""
        from ..onnx.export import onnx_from_model

        attended = self._attends_in_8_bits(settings)
        network = lower(reference, outputs, quantization=settings.quantization, attended=attended)
        return onnx_from_model(network, products="conv").SerializeToString()

    def _attends_in_8_bits(self, settings: Settings) -> bool:
        """Whether queries, keys and values are in 8 bits beside products in 8 bits: on CPUs where the rest is in fp32.
        With AMX, where OpenVINO would multiply them in bf16, that loses (docs/quantizing.md)."""
        return settings.quantization is not None and self.device == "CPU" and self.fastest()[0] == "fp32"

    def contents(
        self,
        reference: Lowered,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        """The network, and the engines of the sizes run so far; if none was, of a Conformer that of the usual size,
        which is built first."""
        from .device import describe
        from .engine import OpenVINOEngine, engine_file
        from .ir import check

        assert graph is not None
        engine = engine or self.engine(reference, settings, outputs)
        assert isinstance(engine, OpenVINOEngine)
        engines = engine.engines(otherwise=_usual_input(reference))
        network = engine.network()
        check(graph, network.onnx)
        precision, rest = engine.computed
        parts = {"products": precision, REST: rest} if precision in FORMATS else {"all": precision}
        built = {
            engine_file(network.sha256, engine.computed, shape, self.device): content
            for shape, content in engines.items()
        }
        return Contents({XML: network.xml, WEIGHTS: network.weights.read(), **built}, parts, describe(self.device))

    def fits(self, manifest: Facts) -> str:
        try:
            from .device import absent, native_precisions
        except ImportError as error:
            found = f'not installed ({error}): pip install "conformer-fast[cpu]"'
            raise EngineMismatchError("openvino", "installed", found, manifest.rebuild) from error
        why = absent(self.device)
        if why:
            raise BackendError(f"{why}; leave device= out to run the bundle on the CPU")
        native = native_precisions(self.device)
        if manifest.precision not in (*native, *self.precisions().calibrated):
            here = "this CPU" if self.device == "CPU" else self.device
            found = f"{' or '.join(native)}, which is all that {here} computes natively"
            raise EngineMismatchError("precision", manifest.precision, found, manifest.rebuild)
        return self.torch_device()

    def _rest_of(self, manifest: Facts) -> str:
        """As it was built, where its engines are for this CPU, or if that was fp32: attention reads 8 bits then, which
        OpenVINO gets wrong in bf16 on CPUs with AMX if there are as many tokens as a head has channels."""
        from .device import describe, native_precisions

        rest, native = manifest.precisions.get(REST), native_precisions(self.device)
        if rest == "fp32":
            return rest
        return rest if rest in native and manifest.runtime == describe(self.device) else self.fastest()[0]

    def restore(self, stored: StoredEngine, settings: Settings, key: bytes | None) -> OpenVINOEngine:
        from .engine import Computed, OpenVINOEngine, engine_file, sizes_of
        from .ir import IR, ir_sha256

        manifest, precision = stored.manifest, settings.precision
        onnx = str(manifest.sha256["onnx"])
        sha256 = ir_sha256(onnx, manifest.files[WEIGHTS].sha256)
        computed = Computed(precision, self._rest_of(manifest) if precision in FORMATS else precision)

        def ir() -> IR:
            return IR(stored.read(XML), stored.read(WEIGHTS), onnx, sha256)

        def kept_engine(shape: Input) -> bytes | None:
            name = engine_file(sha256, computed, shape, self.device)
            return stored.read(name) if name in manifest.files else None

        kept = not stored.signed  # nobody has signed what is in the cache
        return OpenVINOEngine(ir, computed, self.threads, self.device, kept_engine, kept, sizes_of(manifest.files))


def _usual_input(reference: Lowered) -> Input | None:
    """What a Conformer is usually given. Pictures to detect in have no usual size."""
    from .engine import Input

    if not isinstance(reference, Conformer):
        return None
    side = reference.recipe.size or usual_side(reference.config)
    return Input(1, side, side)
