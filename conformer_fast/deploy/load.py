"""Bundles: a compiled model as a folder that starts elsewhere without the model it was made from.

A folder has a manifest (manifest.py), the class names, and by backend
- openvino: the graph as ONNX, and engines of some image sizes, for the CPU they were built on
- triton: the weights as the kernels read them, and the tuned tiles of one GPU
- tensorrt: a plan
`load` verifies all of it, then compares what it needs with what is here, and only then hands anything to a runtime.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..bundles.folder import Bundle, read_bundle, write_bundle
from ..bundles.manifest import LABELS, ONNX, PLAN, TILES, WEIGHTS, Manifest
from ..checkpoints.adopt import Model, Source, adopt
from ..engines.module import Engine, FastConformer
from ..engines.registry import BACKENDS, Settings, choose
from ..engines.triton.graphs import CUDAGraphEngine
from ..errors import BackendError, BundleError, EngineMismatchError
from ..inference.lower import blank
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.class_names import labels_for
from ..model.config import ConformerConfig
from ..model.outputs import LOGITS, SUM, rebuild
from ..model.precision import DTYPES, FORMATS
from ..model.shapes import Shapes, usual_side
from ..storage.hashed import weights_sha256
from ..version import __version__

if TYPE_CHECKING:
    from ..engines.openvino.engine import OpenVINOEngine
    from ..engines.tensorrt.flavors import Flavor
    from ..verification.verify import Report


def load(folder: str | os.PathLike[str], *, key: bytes | None = None, threads: int | None = None) -> LoadedConformer:
    """The compiled model in a bundle, which `CompiledConformer.save` or `conformer_fast.build` wrote.

    key:     what it must be signed with; without one, only damage is noticed. Running an engine is running whatever its
             writer put into it: load none from strangers. A signed bundle loads without its key too, but the kernels
             that TensorRT-RTX compiles are then not kept beside it.
    threads: CPU cores to use; default: as many as PyTorch uses

    Every file's hash is compared before anything is interpreted. Raises BundleError for a folder that is no whole,
    unchanged bundle; EngineMismatchError, which is one, when it does not fit this machine.
    """
    return _load(folder, threads, key)


def _load(
    folder: str | os.PathLike[str], threads: int | None, key: bytes | None = None, digest: str | None = None
) -> LoadedConformer:
    settings, _ = choose("reference", threads=threads)  # checks the threads
    bundle = read_bundle(folder, key)
    if digest not in (None, bundle.digest):
        raise BundleError(f"{bundle.folder} holds another bundle than when the model was copied; load it anew")
    backend, precision = bundle.manifest.backend, bundle.manifest.precision
    settings = replace(settings, backend=backend, precision=precision, device=_device_here(bundle.manifest))
    return LoadedConformer(bundle, settings, key)


class LoadedConformer(FastConformer):
    """A FastConformer from a bundle. It has no reference, `verify` must be given one.

    manifest: what the bundle says of itself; labels: one name a class, none for a model without heads

    Copies and pickles load the folder again, and refuse another bundle in its place. They carry no key.
    """

    def __init__(self, bundle: Bundle, settings: Settings, key: bytes | None = None) -> None:
        manifest = bundle.manifest
        reason = f"{manifest.backend} {manifest.precision}: from {bundle.folder.name}"
        super().__init__(settings, reason, manifest.config, manifest.pad, manifest.outputs, manifest.structure)
        self.manifest, self.labels = manifest, _read_labels(bundle)
        self._bundle = bundle
        self._engine = self._make_engine(key)

    def verify(self, images: Tensor, model: Model) -> Report:
        """Compares with the reference of `model` (anything that compile takes) in float64, per head; prints the report
        and returns it. Raises ValueError when the bundle was not made from such a model."""
        from ..verification.verify import verify

        reference = adopt(model).reference
        if reference.config != self.config:
            raise ValueError(f"verify: the bundle is of a {self.config}, the model is a {reference.config}")
        if weights_sha256(reference) != self.manifest.sha256["weights"]:
            raise ValueError("verify: the bundle was made from other weights than this model's")
        report = verify(self, images, reference)
        print(report)
        return report

    def _make_engine(self, key: bytes | None) -> Engine:
        bundle, settings = self._bundle, self.settings
        if settings.backend == "openvino":
            return _openvino_engine(bundle, settings)
        if settings.backend == "triton":
            return _triton_engine(bundle, self.device)
        return _tensorrt_engine(bundle, self.device, key)

    def __reduce__(self) -> tuple[Any, ...]:
        bundle = self._bundle
        return _load, (str(bundle.folder), self.settings.threads, None, bundle.digest)


def write_openvino_bundle(
    folder: str | os.PathLike[str],
    source: Source,
    onnx: bytes,
    engine: OpenVINOEngine,
    precision: str,
    weights: str,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Writes a bundle of the graph and of the engines that `engine`, made of this graph, has in memory.

    weights: `weights_sha256` of the source's reference. Returns the folder; raises what `write_bundle` raises.
    """
    from ..engines.openvino.engine import Input, describe_cpu, engine_file, native_precisions

    parts = {"all": precision}
    if precision in FORMATS:
        parts = {"products": precision, "the rest": native_precisions()[-1]}
    sha256 = hashlib.sha256(onnx).hexdigest()
    size = usual_side(source.reference.config)
    engines = engine.engines(otherwise=Input(1, size, size))
    return _write(
        folder,
        source,
        {ONNX: onnx, **{engine_file(sha256, precision, shape): content for shape, content in engines.items()}},
        key,
        labels,
        backend="openvino",
        precision=precision,
        precisions=parts,
        runtime=describe_cpu(),
        sha256={"weights": weights, "onnx": sha256},
        rebuild=_compile_again("openvino", folder),
    )


def write_triton_bundle(
    folder: str | os.PathLike[str],
    source: Source,
    model: InferenceConformer,
    precision: str,
    weights: str,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Writes a bundle of the model's weights and of the tiles that its GPU's kernels have now.

    model:   on the GPU, in the precision to run in
    weights: `weights_sha256` of the source's reference. Returns the folder; raises what `write_bundle` raises.
    """
    from ..engines.triton import tuning

    gpu, versions = tuning.gpu_name(model.stem.weight.device), tuning.versions()
    parts = {"products and maps": precision, "tokens and norms": "fp32"}
    if precision in FORMATS:
        parts = {"products": precision, "attention, maps, heads": "fp16", "tokens and norms": "fp32"}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    tiles = json.dumps({gpu: dict(tuning.dispatch.table(gpu))}, indent=1) + "\n"
    return _write(
        folder,
        source,
        {WEIGHTS: safetensors.torch.save(tensors), TILES: tiles.encode()},
        key,
        labels,
        backend="triton",
        precision=precision,
        precisions=parts,
        runtime={"gpu": gpu, "torch": versions["torch"], "triton": versions["triton"]},
        sha256={"weights": weights, "onnx": None},
        rebuild=_compile_again("triton", folder),
    )


def write_tensorrt_bundle(
    folder: str | os.PathLike[str],
    source: Source,
    plan: bytes,
    *,
    precision: str,
    precisions: Mapping[str, str],
    profiles: Sequence[Shapes],
    flavor: Flavor,
    targets: Sequence[str],
    weights: str,
    onnx: str,
    rebuild: str,
    gpu: str | None = None,
    measured: Mapping[str, Any] | None = None,
    key: bytes | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Writes a bundle of a TensorRT plan.

    source:        its outputs are the plan's, in order
    targets:       every compute capability that the plan runs on, as "sm86"
    gpu:           the name of the GPU that it was built on and for, if it was
    weights, onnx: `weights_sha256` of the source's reference, and the sha256 of the graph
    The rest is as in Manifest. Returns the folder; raises what `write_bundle` raises.
    """
    return _write(
        folder,
        source,
        {PLAN: plan},
        key,
        labels,
        backend="tensorrt",
        precision=precision,
        precisions=precisions,
        profiles=tuple(profiles),
        runtime={"flavor": flavor.name, "version": flavor.version, "targets": list(targets), "gpu": gpu or ""},
        sha256={"weights": weights, "onnx": onnx},
        rebuild=rebuild,
        measured=measured,
    )


def check_labels(labels: Sequence[str] | None, config: ConformerConfig) -> None:
    """Raises ValueError unless there is one name, of one line, for each class of the model; None is left to us."""
    if labels is None:
        return
    if len(labels) != config.num_classes:
        raise ValueError(
            f"{len(labels)} labels for a model of {config.num_classes} classes; give one for each, in order"
        )
    broken = [label for label in labels if not isinstance(label, str) or len(label.splitlines()) != 1]
    if broken:
        raise ValueError(f"a label must be one line of text, got {broken[0]!r}")


def _write(
    folder: str | os.PathLike[str],
    source: Source,
    files: Mapping[str, bytes],
    key: bytes | None,
    labels: Sequence[str] | None,
    **entries: Any,
) -> Path:
    """Adds what every backend's bundle has."""
    reference = source.reference
    names: Any = source.outputs
    has_scores = bool({*LOGITS, SUM} & set(names))
    if has_scores:
        check_labels(labels, reference.config)
        lines = "".join(f"{label}\n" for label in labels or labels_for(reference.config))
        files = {**files, LABELS: lines.encode()}
    common: dict[str, Any] = {
        "config": reference.config,
        "pad": reference.pad,
        "outputs": names,
        "structure": rebuild(source.structure, names),
        "profiles": (),
        "preprocessing": _preprocessing() if has_scores and reference.config.in_channels == 3 else None,
        "labels": LABELS if has_scores else None,
    }
    return write_bundle(folder, Manifest(**{**common, **entries}), files, key)


def _preprocessing() -> dict[str, Any]:
    from ..preprocessing.cpu import MEAN, STD

    return {
        "resize": "short edge to int(256 / 224 * size)",
        "interpolation": "Pillow's bicubic",
        "crop": "center, size x size",
        "scale": "1 / 255",
        "mean": list(MEAN),
        "std": list(STD),
    }


def _compile_again(backend: str, folder: str | os.PathLike[str]) -> str:
    return f"conformer_fast.compile(model, backend={backend!r}).save({Path(folder).absolute().name!r})"


def _read_labels(bundle: Bundle) -> tuple[str, ...]:
    manifest = bundle.manifest
    if manifest.labels is None:
        return ()
    try:
        labels = tuple(bundle.read(manifest.labels).decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{bundle.folder / manifest.labels} is not UTF-8 ({error}); make the bundle again") from error
    if len(labels) != manifest.config.num_classes:
        raise BundleError(f"{bundle.folder} has {len(labels)} labels for {manifest.config.num_classes} classes")
    return labels


def _device_here(manifest: Manifest) -> str:
    """Where the bundle's engine runs on this machine. Raises EngineMismatchError if it cannot."""
    find = {"openvino": _openvino_device, "triton": _triton_device, "tensorrt": _tensorrt_device}
    return find[manifest.backend](manifest)


def _openvino_device(manifest: Manifest) -> str:
    try:
        from ..engines.openvino.engine import native_precisions
    except ImportError as error:
        found = f'not installed ({error}): pip install "conformer-fast[cpu]"'
        raise EngineMismatchError("openvino", "installed", found, manifest.rebuild) from error
    native = native_precisions()
    if manifest.precision not in (*native, *BACKENDS["openvino"].in_8_bits()):
        found = f"{' or '.join(native)}, which is all that this CPU computes natively"
        raise EngineMismatchError("precision", manifest.precision, found, manifest.rebuild)
    return "cpu"


def _triton_device(manifest: Manifest) -> str:
    missing = BACKENDS["triton"].missing()
    if missing:
        raise EngineMismatchError("GPU", "one that backend 'triton' runs on", f"none: {missing}", manifest.rebuild)
    return BACKENDS["triton"].device()


def _tensorrt_device(manifest: Manifest) -> str:
    from ..engines.tensorrt.flavors import get_flavor, gpu_target

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
            f"the engine was built on {needed['gpu']}, here is {here}: TensorRT promises nothing for another GPU; "
            f"build it again here: {manifest.rebuild}",
            stacklevel=2,
        )
    return f"cuda:{torch.cuda.current_device()}"


def _release(version: str) -> list[str]:
    """major.minor.patch, to which plans are bound."""
    return version.split(".")[:3]


def _openvino_engine(bundle: Bundle, settings: Settings) -> Engine:
    from ..engines.openvino.engine import Input, OpenVINOEngine, engine_file

    sha256 = bundle.manifest.files[ONNX].sha256

    def stored(shape: Input) -> bytes | None:
        name = engine_file(sha256, settings.precision, shape)
        return bundle.read(name) if name in bundle.manifest.files else None

    identity = {"onnx": sha256, "version": __version__}
    return OpenVINOEngine(partial(bundle.read, ONNX), identity, settings.precision, settings.threads, stored)


def _triton_engine(bundle: Bundle, device: torch.device) -> Engine:
    from ..engines.triton import tuning

    manifest = bundle.manifest
    try:
        tensors = safetensors.torch.load(bundle.read(WEIGHTS))
        model = _with_weights(manifest, tensors).with_outputs(manifest.outputs).to(device)
        gpu = tuning.gpu_name(device)
        tiles = json.loads(bundle.read(TILES)).get(gpu, {}).items()
        choices = {problem: tuning.dispatch.choice_of(tile, f"{TILES}: {problem!r}") for problem, tile in tiles}
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle.folder} does not hold what its manifest says: {error}; make it again: {manifest.rebuild}"
        ) from error
    tuning.use_user_table(device)
    if choices and _same_versions(manifest):
        tuning.dispatch.use_table(gpu, {**tuning.dispatch.table(gpu), **choices})
    return CUDAGraphEngine(model)


def _same_versions(manifest: Manifest) -> bool:
    """Whether its tiles were measured with the versions that are here; a warning if not."""
    from ..engines.triton import tuning

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


def _with_weights(manifest: Manifest, tensors: Mapping[str, Tensor]) -> InferenceConformer:
    """The inference model of these weights, without copying them. Raises ValueError if they are not such a model's."""
    heads, norm = "conv_head.weight" in tensors, "norm.weight" in tensors
    model = blank(manifest.config, DTYPES.get(manifest.precision, torch.float16), heads=heads, norm=norm)
    if manifest.precision in FORMATS:
        scaled = (name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale"))
        added = (name.removesuffix("_scale") for name in tensors if name.endswith(".addend_scale"))
        model = model.quantized(Quantization(manifest.precision, dict.fromkeys((*scaled, *added), 1.0)))
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(
            f"{len(wrong)} weights differ; {wrong[0]} is {found.get(wrong[0])}, must be {expected.get(wrong[0])}"
        )
    ordered = {  # as in_precision orders them
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(ordered, assign=True)
    return model


def _tensorrt_engine(bundle: Bundle, device: torch.device, key: bytes | None) -> Engine:
    from ..engines.tensorrt.engine import TensorRTEngine
    from ..engines.tensorrt.flavors import get_flavor
    from ..engines.tensorrt.kernel_cache import RuntimeCacheFile
    from ..errors import EngineError

    manifest = bundle.manifest
    flavor = get_flavor(manifest.runtime["flavor"])
    keep = flavor.has_runtime_cache and (key is not None or not bundle.signed)
    kept = RuntimeCacheFile(bundle.folder, key) if keep else None
    try:
        return TensorRTEngine(bundle.read(PLAN), flavor, manifest.outputs, device, kept)
    except EngineError as error:
        raise BundleError(
            f"{bundle.folder / PLAN} cannot be loaded: {error}; make it again: {manifest.rebuild}"
        ) from error
