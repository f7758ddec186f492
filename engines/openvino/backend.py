"""OpenVINO as a backend. It is imported where an engine is made, so that this module can be without it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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

ONNX = "model.onnx"
REST = "the rest"  # of a model whose products are in 8 bits: a key of its manifest's precisions


@dataclass(frozen=True)
class OpenVINO(Backend):
    """Engines for CPUs, one for each image size, built at the first call with that size and kept on disk.

    threads: cores to use; default: as many as PyTorch uses. Raises ArgumentError unless it is a whole number, at least
    1.
    """

    threads: int | None = None

    name: ClassVar[str] = "openvino"
    hardware: ClassVar[str] = "CPU"
    device_type: ClassVar[str] = "cpu"
    packages: ClassVar[tuple[str, ...]] = ("openvino", "onnx")
    format: ClassVar[Format] = Format((ONNX,), {"cpu": str, "capabilities": list, "openvino": str})

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
        sha256 = partial(remembered_sha256, reference, outputs, settings.quantization)
        graph = partial(self.graph, reference, settings, outputs)
        return OpenVINOEngine(graph, computed, self.threads, sha256)

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
        """The graph, and the engines of the sizes run so far; if none was, of the usual size, which is built first."""
        from .cpu import describe_cpu
        from .engine import Input, OpenVINOEngine, engine_file

        assert graph is not None
        sha256 = hashlib.sha256(graph).hexdigest()
        engine = engine or self.engine(reference, settings, outputs)
        assert isinstance(engine, OpenVINOEngine)
        side = reference.recipe.size or usual_side(reference.config)
        engines = engine.engines(otherwise=Input(1, side, side))
        engine.check(graph)
        precision, rest = engine.computed
        parts = {"products": precision, REST: rest} if precision in FORMATS else {"all": precision}
        built = {engine_file(sha256, engine.computed, shape): content for shape, content in engines.items()}
        return Contents({ONNX: graph, **built}, parts, describe_cpu())

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

        sha256, precision = bundle.manifest.files[ONNX].sha256, settings.precision
        computed = Computed(precision, self._rest_of(bundle.manifest) if precision in FORMATS else precision)

        def stored(shape: Input) -> bytes | None:
            name = engine_file(sha256, computed, shape)
            return bundle.read(name) if name in bundle.manifest.files else None

        graph = partial(bundle.read, ONNX)
        cache = not bundle.signed  # nobody has signed what is there
        return OpenVINOEngine(graph, computed, self.threads, lambda graph: sha256, stored, cache)
