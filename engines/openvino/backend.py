"""OpenVINO as a backend. It is imported where an engine is made, so that this module can be without it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from conformer_fast.bundles.folder import Bundle
from conformer_fast.bundles.manifest import Format, Manifest
from conformer_fast.errors import ConformerFastError, EngineMismatchError, shown, whole
from conformer_fast.inference.lower import lower
from conformer_fast.model.precision import FORMATS
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import usual_side

from ..base import Backend, Contents, Engine, Precisions, Settings
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

    threads: cores to use; default: as many as PyTorch uses. Raises ArgumentError unless it is a whole number, at least
    1.
    """

    threads: int | None = None

    name: ClassVar[str] = "openvino"
    hardware: ClassVar[str] = "CPU"
    device_type: ClassVar[str] = "cpu"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    format: ClassVar[Format] = Format((XML, WEIGHTS), {"cpu": str, "capabilities": list, "openvino": str})

    def __post_init__(self) -> None:
        if self.threads is not None:
            whole("threads", self.threads)

    def missing(self) -> str | None:
        absent = [package for package in ("openvino", "onnx") if find_spec(package) is None]
        return f'{" and ".join(absent)} not installed: pip install "conformer-fast[cpu]"' if absent else None

    def precisions(self) -> Precisions:
        from .cpu import native_precisions

        return Precisions(native_precisions(), ("int8",))

    def fastest(self) -> tuple[str, str]:
        """It is measured: see speed.py."""
        from .speed import fastest, speeds

        try:
            found = speeds()
        except (RuntimeError, ConformerFastError) as error:
            return "fp32", f"nothing else could be measured here ({shown(error)})"
        if not found:
            return super().fastest()
        best = fastest(found)
        if best != "fp32":
            return best, f"{found[best]:.2f}x of fp32 here (measured)"
        return best, ", ".join(f"{name} is {speed:.2f}x of it" for name, speed in found.items()) + " here (measured)"

    def speeds(self) -> dict[str, float]:
        from .speed import speeds

        with suppress(RuntimeError, ConformerFastError):
            return speeds()
        return {}

    def engine(self, reference: Conformer, settings: Settings, outputs: Sequence[str]) -> OpenVINOEngine:
        from .engine import Computed, OpenVINOEngine

        precision = settings.precision
        computed = Computed(precision, self.fastest()[0] if precision in FORMATS else precision)
        return OpenVINOEngine(partial(self._ir, reference, settings, outputs), computed, self.threads)

    def _ir(self, reference: Conformer, settings: Settings, outputs: Sequence[str]) -> IR:
        from .ir import cached_ir

        graph = cache(partial(self.graph, reference, settings, outputs))  # written once, for its hash and for the IR
        sha256 = remembered_sha256(reference, outputs, settings.quantization, graph)
        return cached_ir(graph, sha256, settings.precision)

    def graph(self, reference: Conformer, settings: Settings, outputs: Sequence[str]) -> bytes:
        """In fp32 with 8-bit products marked; the engine decides in what the rest is computed."""
        from ..onnx.export import onnx_from_model

        network = lower(reference, outputs, quantization=settings.quantization)
        return onnx_from_model(network, products="conv").SerializeToString()

    def contents(
        self,
        reference: Conformer,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        """The network, and the engines of the sizes run so far; if none was, of the usual size, which is built
        first."""
        from .cpu import describe_cpu
        from .engine import Input, OpenVINOEngine, engine_file
        from .ir import check

        assert graph is not None
        engine = engine or self.engine(reference, settings, outputs)
        assert isinstance(engine, OpenVINOEngine)
        side = reference.recipe.size or usual_side(reference.config)
        engines = engine.engines(otherwise=Input(1, side, side))
        network = engine.network()
        check(graph, network.onnx)
        precision, rest = engine.computed
        parts = {"products": precision, REST: rest} if precision in FORMATS else {"all": precision}
        built = {engine_file(network.sha256, engine.computed, shape): content for shape, content in engines.items()}
        return Contents({XML: network.xml, WEIGHTS: network.weights.read(), **built}, parts, describe_cpu())

    def fits(self, manifest: Manifest) -> str:
        try:
            from .cpu import native_precisions
        except ImportError as error:
            found = f'not installed ({error}): pip install "conformer-fast[cpu]"'
            raise EngineMismatchError("openvino", "installed", found, manifest.rebuild) from error
        native = native_precisions()
        if manifest.precision not in (*native, *self.precisions().calibrated):
            found = f"{' or '.join(native)}, which is all that this CPU computes natively"
            raise EngineMismatchError("precision", manifest.precision, found, manifest.rebuild)
        return self.device()

    def _rest_of(self, manifest: Manifest) -> str:
        """As it was built, where its engines are for this CPU."""
        from .cpu import describe_cpu, native_precisions

        rest = manifest.precisions.get(REST)
        return rest if rest in native_precisions() and manifest.runtime == describe_cpu() else self.fastest()[0]

    def restore(self, bundle: Bundle, settings: Settings, key: bytes | None) -> OpenVINOEngine:
        from .engine import Computed, OpenVINOEngine, engine_file
        from .ir import IR, ir_sha256

        manifest, precision = bundle.manifest, settings.precision
        onnx = str(manifest.sha256["onnx"])
        sha256 = ir_sha256(onnx, manifest.files[WEIGHTS].sha256)
        computed = Computed(precision, self._rest_of(manifest) if precision in FORMATS else precision)

        def ir() -> IR:
            return IR(bundle.read(XML), bundle.read(WEIGHTS), onnx, sha256)

        def stored(shape: Input) -> bytes | None:
            name = engine_file(sha256, computed, shape)
            return bundle.read(name) if name in manifest.files else None

        kept = not bundle.signed  # nobody has signed what is in the cache
        return OpenVINOEngine(ir, computed, self.threads, stored, kept)
