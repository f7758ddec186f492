"""Our own code for CPUs as a backend: csrc/ runs the network in 8 bits, for any size of images at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Facts, Format, Manifest, PartManifest
from conformer_fast.errors import (
    MOST_OF_A_COMMAND,
    ArgumentError,
    BackendError,
    BundleError,
    EngineMismatchError,
    first_few,
    shown,
    whole,
)
from conformer_fast.extension import unusable
from conformer_fast.inference.lower import Lowered, blank, lower
from conformer_fast.inference.quantization import Quantization, addend_of, result_of
from conformer_fast.model.blank import outline
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.reference import Conformer

from ..base import Backend, Contents, Engine, Precisions, Settings

if TYPE_CHECKING:
    from .engine import NativeEngine
    from .graph import Graph

NETWORK = "network.safetensors"
LANES, LARGEST_HEAD, MOST_CHANNELS = 16, 64, 4  # as in csrc/int8.h
MOST_THREADS = 1024
SLOW = "portable"  # the instructions that every CPU has
REBUILD = "conformer_fast.compile(model, precision='int8', quantization=images).save(folder)"  # by another backend


@dataclass(frozen=True)
class Native(Backend):
    """Engines for CPUs with AVX-512 VNNI that compute in 8 bits, with fp32 around them. Each takes images of any size,
    and nothing is built for one. They run Conformers, no detectors.

    threads: cores of the CPU to use; default: as many as PyTorch uses

    Raises ArgumentError unless `threads` is a whole number, at least 1 and at most 1024.
    """

    threads: int | None = None

    name: ClassVar[str] = "native"
    hardware: ClassVar[str] = "CPU"
    device_type: ClassVar[str] = "cpu"
    taken_for: ClassVar[tuple[str, ...]] = ("int8",)
    runs_detectors: ClassVar[bool] = False
    format: ClassVar[Format] = Format((NETWORK,), {"instructions": str}, read_once=(NETWORK,))

    def __post_init__(self) -> None:
        if self.threads is not None and whole("threads", self.threads) > MOST_THREADS:
            raise ArgumentError(f"threads must be at most {MOST_THREADS}, got {self.threads}")

    def missing(self) -> str | None:
        return unusable() or ("this CPU has no AVX-512 VNNI" if _instructions() == SLOW else None)

    def precisions(self) -> Precisions:
        return Precisions((), self.taken_for)

    def refuses(self, reference: Lowered, quantization: Quantization | None) -> str | None:
        assert isinstance(reference, Conformer)  # detectors are passed over
        assert quantization is not None
        config = reference.config
        size = config.embed_dim // config.num_heads
        if size % LANES or size > LARGEST_HEAD:
            return f"a head has {size} channels, not a multiple of {LANES} up to {LARGEST_HEAD}"
        if config.in_channels > MOST_CHANNELS:
            return f"images have {config.in_channels} channels, more than {MOST_CHANNELS}"
        ranges = _ranges_of(config, heads=not reference.features_only)
        missing = [name for name in ranges if name not in quantization.ranges]
        return f"its quantization has no ranges of {first_few(missing)}" if missing else None

    def engine(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> NativeEngine:
        from .engine import NativeEngine

        return NativeEngine(partial(self._graph, reference, settings, outputs), self.threads)

    def contents(
        self,
        reference: Lowered,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        """The network, and which instructions the CPU has that it was made on; it runs by others too."""
        files = {NETWORK: self._graph(reference, settings, outputs).to_bytes()}
        parts = {"products": settings.precision, "the rest": "fp32"}
        return Contents(files, parts, {"instructions": _instructions()})

    def fits(self, manifest: Facts) -> str:
        missing = self.missing()
        if missing:
            raise EngineMismatchError("CPU", f"one that backend {self.name!r} runs on", f"none: {missing}", REBUILD)
        if manifest.precision not in self.taken_for:
            found = f"{' or '.join(self.taken_for)} alone"
            raise EngineMismatchError("precision", manifest.precision, found, manifest.rebuild)
        return self.torch_device()

    def restore(self, stored: StoredEngine, settings: Settings, key: bytes | None) -> NativeEngine:
        from .engine import NativeEngine
        from .graph import Graph

        manifest, content = stored.manifest, stored.read(NETWORK)
        try:
            graph = Graph.from_bytes(content)
            if isinstance(manifest, PartManifest):
                raise BundleError(f"backend {self.name!r} runs no detectors")
            assert isinstance(manifest, Manifest)
            graph.check_like(_outline_of(manifest))
        except BundleError as error:
            raise BundleError(
                f"{stored.folder} does not hold what its manifest says: {error}; make it again: "
                f"{shown(manifest.rebuild, MOST_OF_A_COMMAND)}"
            ) from error
        return NativeEngine(lambda: graph, self.threads)

    def _graph(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> Graph:
        from .graph import Graph

        assert isinstance(reference, Conformer)
        why = self.refuses(reference, settings.quantization)
        if why:
            raise BackendError(f"backend {self.name!r} cannot run this model: {why}")
        return Graph.of(lower(reference, outputs, quantization=settings.quantization, attended=True))


def _outline_of(manifest: Manifest) -> Graph:
    """The graph of such a model, on the meta device."""
    from .graph import Graph

    ranges = dict.fromkeys(_ranges_of(manifest.config, heads=True), 1.0)
    model = outline(manifest.config).float().eval()
    return Graph.of(lower(model, manifest.outputs, quantization=Quantization("int8", ranges), attended=True))


def _ranges_of(config: ConformerConfig, heads: bool) -> list[str]:
    """The names of those that a quantization must have."""
    products = blank(config, None, "fp32", heads=heads, norm=heads).quantizable
    added = [addend_of(name) for name in products if name.endswith(".conv3")]
    attended = [result_of(name) for name in products if name.endswith(".qkv")]
    return [*products, *added, *attended]


def _instructions() -> str:
    """The fastest that this CPU has and csrc/ uses; other compilers than GCC and Clang build none."""
    from conformer_fast import _C

    return next(iter(_C.int8_instruction_sets()), SLOW)
