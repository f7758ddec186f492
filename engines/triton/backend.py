"""Our Triton kernels as a backend. They are imported where an engine is made: Triton is on Linux only."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from conformer_fast.bundles.folder import StoredEngine
from conformer_fast.bundles.manifest import Facts, Format, Manifest, PartManifest
from conformer_fast.errors import (
    MOST_OF_A_COMMAND,
    ArgumentError,
    BundleError,
    EngineMismatchError,
    shown,
    truth,
)
from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.inference.lower import Lowered, blank, blank_part, lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.detector.detect import Operators
from conformer_fast.model.precision import DTYPES, FORMATS, around

from ..base import Backend, Contents, Engine, Precisions, Settings
from ..ceiling import Ceiling, by_pytorch
from ..cuda import between_networks, current_device, in_8_bits
from .graphs import CUDAGraphEngine

if TYPE_CHECKING:
    from .tuning import KernelTuner

INTERPRET = "TRITON_INTERPRET"
CAPABILITY = (8, 0)  # the oldest GPUs with bfloat16 and asynchronous copies: A100
WEIGHTS, TILES = "model.safetensors", "tiles.json"


@dataclass(frozen=True)
class Triton(Backend):
    """Engines for NVIDIA GPUs of any image size, a CUDA graph for each size and bucket of batches.

    tune: measure at the first call with a new shape which tile, or PyTorch, is fastest for each kernel. It takes
          minutes; the result is kept for later programs, as that of `conformer-fast tune` is.
    """

    tune: bool = False

    def __post_init__(self) -> None:
        truth("tune", self.tune)

    name: ClassVar[str] = "triton"
    hardware: ClassVar[str] = "GPU"
    device_type: ClassVar[str] = "cuda"
    packages: ClassVar[tuple[str, ...]] = ("triton",)
    format: ClassVar[Format] = Format(
        (WEIGHTS, TILES), {"gpu": str, "torch": str, "triton": str}, read_once=(WEIGHTS, TILES)
    )

    def missing(self) -> str | None:
        if not torch.cuda.is_available() or torch.version.hip:
            return "no CUDA device"
        if find_spec("triton") is None:
            return 'triton not installed: pip install "conformer-fast[triton]"'
        if interpreted():
            return f"{INTERPRET} makes Triton run its kernels on the CPU; unset it"
        capability = torch.cuda.get_device_capability()
        if capability < CAPABILITY:
            return "the GPU has compute capability {}.{}, the kernels need {}.{}".format(*capability, *CAPABILITY)
        return None

    def precisions(self) -> Precisions:
        return Precisions(tuple(DTYPES), in_8_bits())

    def ceiling(self, precision: str, device: str) -> Ceiling | None:
        return by_pytorch(precision, device)

    def torch_device(self) -> str:
        return current_device()

    def engine(self, reference: Lowered, settings: Settings, outputs: Sequence[str]) -> CUDAGraphEngine:
        from . import tuning

        device = torch.device(settings.device)
        tuning.use_user_table(device)
        return CUDAGraphEngine(
            _network(reference, settings, outputs).to(device), tuning.tune_new if self.tune else None
        )

    def operators(self, device: str) -> Operators:
        return between_networks(device)

    def tuner(self, device: str) -> KernelTuner:
        from .tuning import KernelTuner

        return KernelTuner(torch.device(device))

    def contents(
        self,
        reference: Lowered,
        settings: Settings,
        outputs: Sequence[str],
        graph: bytes | None,
        engine: Engine | None,
    ) -> Contents:
        """The weights as the kernels read them, and the tuned tiles of this GPU. The compiled kernels are not stored:
        they would be native code from a folder, and Triton keeps its own cache of them."""
        from . import tuning

        precision, gpu, versions = settings.precision, tuning.gpu_name(torch.device(settings.device)), tuning.versions()
        parts = {"products and maps": precision, "tokens and norms": "fp32"}
        if precision in FORMATS:
            rest = around(precision)
            parts = {"products, and what only they read": precision, "attention, heads": rest, "tokens, norms": "fp32"}
        network = _network(reference, settings, outputs)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        tiles = json.dumps({gpu: dict(tuning.dispatch.table(gpu))}, indent=1) + "\n"
        files = {WEIGHTS: safetensors.torch.save(tensors), TILES: tiles.encode()}
        return Contents(files, parts, {"gpu": gpu, "torch": versions["torch"], "triton": versions["triton"]})

    def fits(self, manifest: Facts) -> str:
        missing = self.missing()
        if missing:
            needed = f"one that backend {self.name!r} runs on"
            raise EngineMismatchError("GPU", needed, f"none: {missing}", manifest.rebuild)
        return self.torch_device()

    def restore(self, stored: StoredEngine, settings: Settings, key: bytes | None) -> CUDAGraphEngine:
        from . import tuning

        manifest, device = stored.manifest, torch.device(settings.device)
        try:
            tensors = safetensors.torch.load(stored.read(WEIGHTS))
            network = _with_weights(manifest, tensors).to(device)
            gpu = tuning.gpu_name(device)
            tiles = json.loads(stored.read(TILES)).get(gpu, {}).items()
            choices = {problem: tuning.dispatch.choice_of(tile, f"{TILES}: {problem!r}") for problem, tile in tiles}
        except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(
                f"{stored.folder} does not hold what its manifest says: {shown(error)}; make it again: "
                f"{shown(manifest.rebuild, MOST_OF_A_COMMAND)}"
            ) from error
        tuning.use_user_table(device)
        if choices and _same_versions(manifest):
            tuning.dispatch.use_table(gpu, {**tuning.dispatch.table(gpu), **choices})
        return CUDAGraphEngine(network, tuning.tune_new if self.tune else None)


def interpreted() -> bool:
    """Whether the environment makes Triton interpret its kernels, on the CPU."""
    return os.environ.get(INTERPRET, "").lower() in ("1", "true", "on")


def _network(reference: Lowered, settings: Settings, outputs: Sequence[str]) -> InferenceNetwork:
    return lower(reference, outputs, around(settings.precision), settings.quantization)


def _same_versions(manifest: Facts) -> bool:
    """Whether its tiles were measured with the versions that are here; a warning if not."""
    from . import tuning

    here = tuning.versions()
    known = {"conformer_fast": manifest.conformer_fast, **manifest.runtime}
    there = {name: known[name] for name in here}
    if here != there:
        warnings.warn(
            f"the bundle's tuned tiles are not used: they were measured with {there}, here is {here}; "
            f"`conformer-fast tune` measures them anew",
            stacklevel=2,
        )
    return here == there


def _with_weights(manifest: Manifest | PartManifest, tensors: Mapping[str, Tensor]) -> InferenceNetwork:
    """The inference model of these weights, without copying them. Raises ArgumentError if they are not such a
    model's."""
    heads, norm = "conv_head.weight" in tensors, "norm.weight" in tensors
    model: InferenceNetwork
    if isinstance(manifest, PartManifest):
        model = blank_part(manifest.config, manifest.name, around(manifest.precision))
    else:
        model = blank(manifest.config, manifest.outputs, around(manifest.precision), heads=heads, norm=norm)
    if manifest.precision in FORMATS:
        scaled = (name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale"))
        added = (name.removesuffix("_scale") for name in tensors if name.endswith(".addend_scale"))
        model = model.quantized(Quantization(manifest.precision, dict.fromkeys((*scaled, *added), 1.0)))
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ArgumentError(
            f"{len(wrong)} weights differ; {wrong[0]} is {found.get(wrong[0])}, must be {expected.get(wrong[0])}"
        )
    ordered = {  # as in_precision orders them
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(ordered, assign=True)
    return model
