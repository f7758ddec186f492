"""Weights: read a checkpoint without running its code, load it with counted coverage, write it as safetensors."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import ArgumentError, CheckpointError, first_few, shown
from ..model.blank import in_memory, outline
from ..model.config import PACKAGED, ConformerConfig, our_name
from ..model.recipe import USUAL, Recipe
from ..model.reference import Conformer
from ..model.shapes import Pad
from ..storage.outputs import AnyPath, check_output, write_output
from ..storage.regular import open_regular
from .dialects import COUNTER, HEADS, Dialect, Recognized, recognize, to_dialect
from .metadata import metadata_of, read_recipe
from .pickled import Left, PickleError
from .safetensors_files import read_safetensors, read_shards
from .saved import Saved, damaged, read_tensors
from .torch_files import REBUILD, ZIP_MAGIC, read_legacy, read_zip

QKV_WEIGHT, QKV_BIAS = ".attn.qkv.weight", ".attn.qkv.bias"
AVERAGED = ("model_ema", "state_dict_ema")
CONTAINERS = ("model", "state_dict", "model_state_dict", "net", *AVERAGED)
"""Keys that a state dict is found under, in order of preference."""
SHARDS = ".safetensors.index.json"
PICKLE_MAGIC = b"\x80"
DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` or `convert` did.

    dialect: whose names the weights had: "official", "mmpretrain" or "mmdetection"
    matched: tensors taken over
    ignored: keys left alone: counters, a detector's other parts, heads when the model has none
    """

    dialect: Dialect
    matched: int
    ignored: int


def read_state_dict(path: str | os.PathLike[str], ema: bool = False) -> dict[str, Tensor]:
    """The state dict in a torch (.pth, .pt) or safetensors file, under its own names, on the CPU.

    The content decides the format, except that a file called .safetensors must hold that. Nothing in the file is run.
    Of an official training checkpoint `model` is taken, or `model_ema` with ema=True.

    Raises CheckpointError when there is no such file, it is damaged, it needs code to load, or it holds no state dict.
    """
    path = _existing_file(path)
    try:
        if path.name.endswith(SHARDS):
            return dict(_state_dict(read_shards(path), ema))
        with open_regular(path) as file:
            start = file.read(9)
            if path.suffix == ".safetensors" or start[8:] == b"{":  # eight bytes of header length, then the header
                return dict(_state_dict(read_safetensors(file), ema))
            return read_tensors(file, _state_dict(_content(file, start), ema))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged bytes make the parsers raise anything
        why = str(error) if isinstance(error, PickleError) else type(error).__name__
        raise CheckpointError(f"{path}: {damaged(why)}") from error


def load_weights(model: Conformer, source: str | os.PathLike[str] | Mapping[str, Any], ema: bool = False) -> LoadReport:
    """Copies a checkpoint, or a state dict, of any dialect into `model`, cast to the model's dtype. All or nothing.

    A features_only model takes no heads and no trans_norm. Counters (num_batches_tracked) are left alone. The model's
    `recipe` becomes what the file says of itself; a state dict says nothing.

    Raises CheckpointError, and leaves the model as it was, when a tensor is missing, unexpected, misshapen, not
    floating point or not finite, or a variance negative, and for the weights of another model: other heads, labels of
    other classes.
    """
    if isinstance(source, Mapping):
        return _copy(recognize(_state_dict(source, ema)), USUAL, model)
    state, recipe = read_state_dict(source, ema), read_recipe(source)
    try:
        return _copy(recognize(state), recipe, model)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def resolve_weights(name: str | ConformerConfig, weights: str | os.PathLike[str]) -> Path:
    """The file meant by `weights`: "pretrained" (downloaded if need be), "packaged" (digits only) or a path.

    Raises CheckpointError when there is no such file, DownloadError when it cannot be downloaded.
    """
    name = our_name(name) if isinstance(name, str) else name
    if weights == "pretrained":
        if not isinstance(name, str):
            raise CheckpointError("weights='pretrained' needs the name of a published variant, not a ConformerConfig")
        from .download import fetch

        return fetch(name)
    if weights == "packaged":
        if name not in PACKAGED:
            raise CheckpointError(
                f"only {', '.join(PACKAGED)} has packaged weights, not {name}; pass a path or weights='pretrained'"
            )
        return _existing_file(DATA / f"{name}.safetensors")
    return _existing_file(weights)


def save_weights(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    dialect: Dialect = "official",
    *,
    recipe: Recipe = USUAL,
) -> None:
    """Writes a state dict of official names as safetensors in `dialect`: the whole file appears at once, or nothing.

    recipe: what the model was trained for, which its tensors do not tell; every command then uses it

    Raises CheckpointError when `path` does not end in .safetensors or cannot be written, ArgumentError for a dialect
    other than "official" and "mmpretrain", and for a recipe that does not fit the tensors.
    """
    _check_target(path)
    _check_recipe(recipe, Recognized("official", dict(state), 0))
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in to_dialect(state, dialect).items()
    }
    try:
        write_output(path, safetensors.torch.save(tensors, metadata=metadata_of(recipe)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dialect: Dialect = "official",
    *,
    recipe: Recipe = USUAL,
) -> LoadReport:
    """Rewrites a checkpoint as safetensors in `dialect`, dtypes unchanged. Only the Conformer's own tensors are kept,
    and what the source says of itself.

    recipe: what it does not say, or says wrongly, which is then said in a warning

    Raises CheckpointError as `read_state_dict`, `recognize` and `save_weights` do, and when target is source itself;
    ArgumentError for a recipe that does not fit the tensors.
    """
    source = _existing_file(source)
    _check_target(target, [source])
    state = read_state_dict(source)
    found = recognize(state)
    said = read_recipe(source)
    others = [name for name, value in recipe.known().items() if said.known().get(name, value) != value]
    if others:
        warnings.warn(f"{', '.join(others)} as given; {source} says otherwise", stacklevel=2)
    save_weights(found.state, target, dialect, recipe=recipe.over(said))
    return LoadReport(found.dialect, len(found.state), len(state) - len(found.state))


def with_weights(
    config: ConformerConfig, found: Recognized, recipe: Recipe, features_only: bool, pad: Pad, like: Tensor
) -> Conformer:
    """A new model of these sizes with this state dict in it, of the dtype and on the device of `like`.

    The names and shapes are compared before memory is taken for it, and no random number is.
    Raises CheckpointError as `load_weights` does.
    """
    _state_dict(found.state, ema=False)
    model = outline(config, features_only, pad).to(like.dtype)
    _fitting(found, model)
    model = in_memory(model, like.device)
    _copy(found, recipe, model)
    return model


def _check_target(path: AnyPath, inputs: Iterable[AnyPath] = ()) -> None:
    """Raises CheckpointError unless weights that are made from these inputs can be written there."""
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: weights are written as safetensors; give a name that ends in .safetensors")
    try:
        check_output(path, inputs)
    except (ArgumentError, OSError) as error:
        raise CheckpointError(str(error)) from error


def _fitting(found: Recognized, model: Conformer) -> tuple[dict[str, Tensor], int]:
    """The tensors meant for this model, each of the right shape, and how many keys of the file are not."""
    values, ignored = _select(found, model)
    _check_coverage(found, values, model)
    return values, ignored


def _copy(found: Recognized, recipe: Recipe, model: Conformer) -> LoadReport:
    values, ignored = _fitting(found, model)
    try:
        recipe.check(model.config, heads=not model.features_only)
    except ArgumentError as error:
        raise CheckpointError(str(error)) from error
    parameters = model.state_dict()
    values = {name: _checked(name, tensor, parameters[name].dtype) for name, tensor in values.items()}
    with torch.no_grad():
        for name, tensor in values.items():
            parameters[name].copy_(tensor)
    model.recipe = recipe
    return LoadReport(found.dialect, len(values.keys() & found.state.keys()), ignored)


def _check_recipe(recipe: Recipe, found: Recognized) -> None:
    """Raises ArgumentError for one that does not fit the tensors. What it does not say is not looked for in them."""
    if recipe != Recipe():
        recipe.check(found.config(recipe.num_heads or 1), heads=found.num_classes is not None)


def _existing_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a name that no file can have
        raise CheckpointError(
            f"{shown(path)}: no such file; pass a checkpoint's path, 'pretrained' or 'packaged'"
        ) from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{shown(path)}: is a folder; pass the checkpoint file inside it")
    if not stat.S_ISREG(mode):  # it could be waited for, or be without an end
        raise CheckpointError(f"{shown(path)}: is a pipe or a device, not a file; copy what it gives into a file")
    return path


def _content(file: BufferedReader, start: bytes) -> Any:
    """What a file of PyTorch's that begins so holds; its tensors as Saved."""
    file.seek(0)
    if start.startswith(ZIP_MAGIC):
        return read_zip(file)
    if start.startswith(PICKLE_MAGIC):
        return read_legacy(file)
    raise CheckpointError(
        f"neither a torch nor a safetensors file, it begins with {start!r}; download or copy it again"
    )


def _state_dict(content: Any, ema: bool) -> Mapping[str, Any]:
    """The state dict itself, or the one inside a training checkpoint: its values are tensors, or Saved if they were."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"holds one {_kind(content)}, not a state dict")
    held = [key for key in (AVERAGED if ema else CONTAINERS) if isinstance(content.get(key), Mapping)]
    if ema and not held:
        raise CheckpointError("holds no model_ema; load it without ema")
    content = content[held[0]] if held else content
    for name, tensor in content.items():
        dense = isinstance(tensor, Saved) or (
            isinstance(tensor, Tensor) and not (tensor.is_meta or tensor.is_nested) and tensor.layout == torch.strided
        )
        if not isinstance(name, str) or not (dense or _is_tensor(tensor)):
            raise CheckpointError(f"not a state dict: {shown(repr(name))} is of type {_kind(tensor)}, not a tensor")
        if not dense:
            raise CheckpointError(f"{shown(name)} is not a plain dense tensor; save the weights as ordinary tensors")
    return content


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | Saved) or (isinstance(value, Left) and value.kind.startswith(REBUILD))


def _kind(value: Any) -> str:
    if _is_tensor(value):
        return "Tensor"
    return shown(value.kind) if isinstance(value, Left) else type(value).__name__


def _select(found: Recognized, model: Conformer) -> tuple[dict[str, Tensor], int]:
    """The tensors meant for this model, and how many keys of the file are not."""
    values = {name: tensor for name, tensor in found.state.items() if not name.endswith(COUNTER)}
    if not any(name.endswith(QKV_BIAS) for name in values):  # as the official class is by default
        weights = {name: values[name] for name in values if name.endswith(QKV_WEIGHT)}
        values |= {
            name.replace(QKV_WEIGHT, QKV_BIAS): weight.new_zeros(weight.shape[:1]) for name, weight in weights.items()
        }
    if model.features_only:
        kept = {name: tensor for name, tensor in values.items() if not name.startswith((*HEADS, "trans_norm."))}
        return kept, found.ignored + len(values) - len(kept)
    if found.num_classes is None:
        raise CheckpointError(
            f"{found.dialect} weights without classification heads; build the model with features_only=True"
        )
    if found.num_classes != model.config.num_classes:
        raise CheckpointError(
            f"{found.dialect} weights for {found.num_classes} classes, but the model has {model.config.num_classes}; "
            f"build it with num_classes={found.num_classes}"
        )
    return values, found.ignored


def _check_coverage(found: Recognized, values: Mapping[str, Tensor], model: Conformer) -> None:
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    shared = [name for name in wanted if name in values]
    problems = {
        "missing": [name for name in wanted if name not in values],
        "unexpected": [name for name in values if name not in wanted],
        "misshapen": [
            f"{name} {tuple(values[name].shape)} for {tuple(wanted[name])}"
            for name in shared
            if values[name].shape != wanted[name]
        ],
    }
    if not any(problems.values()):
        return
    matched = len(shared) - len(problems["misshapen"])
    text = [f"{found.dialect} weights do not fit: {matched} of the model's {len(wanted)} tensors match"]
    text += [f"{len(names)} {kind}: {first_few(names)}" for kind, names in problems.items() if names]
    raise CheckpointError("; ".join(text + _size_differences(found, model.config)))


def _size_differences(found: Recognized, config: ConformerConfig) -> list[str]:
    """In words, for an error: what the file's own sizes are where they differ from the model's."""
    try:
        sizes = asdict(found.config(num_heads=1))
    except CheckpointError:
        return []
    return [
        f"the file has {name}={sizes[name]}, the model {name}={size}"
        for name, size in asdict(config).items()
        if name not in ("num_heads", "num_classes") and sizes[name] != size
    ]


def _checked(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{shown(name)} holds {tensor.dtype} values, not weights in floating point")
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinite values as {dtype}; the checkpoint is damaged or diverged")
    if name.endswith("running_var") and (tensor < 0).any():
        raise CheckpointError(f"{name} holds a negative variance, {tensor.min():.3g}; the checkpoint is damaged")
    return tensor
