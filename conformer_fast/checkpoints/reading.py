"""Reading of a checkpoint: its tensors under their own names, and what it says of its model. Nothing in it is run."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, a_path, shown, truth
from ..model.recipe import Recipe
from ..storage.regular import open_regular
from .dialects import Recognized, detector_names, recognize
from .metadata import recipe_in
from .openmmlab import recipe_beside
from .pickled import Left, PickleError
from .safetensors_files import SHARDS, read_safetensors, read_shards
from .saved import Saved, damaged, read_tensors
from .torch_files import REBUILD, ZIP_MAGIC, read_legacy, read_zip

AVERAGED = ("model_ema", "state_dict_ema")
CONTAINERS = ("model", "state_dict", "model_state_dict", "net", *AVERAGED)
"""Keys that a state dict is found under, in order of preference."""
PICKLE_MAGIC = b"\x80"
MANIFEST = "manifest.json"  # of a bundle
CLASSES = "roi_head.bbox_head.fc_cls.weight"  # of a detector: a row for each, and for the background


@dataclass(frozen=True)
class Checkpoint:
    """state: tensors by their own names, on the CPU. found: the Conformer's among them. recipe: what the file says."""

    state: dict[str, Tensor]
    found: Recognized
    recipe: Recipe


def read_checkpoint(path: str | os.PathLike[str], ema: bool = False) -> Checkpoint:
    """What `read_state_dict` reads, and what the file says of its model, in our words or in mmpretrain's.

    Warns, in one line, of what the latter says and cannot be used. Raises CheckpointError as `read_state_dict` and
    `recognize` do, and for metadata of ours that are no recipe.
    """
    state, metadata, meta = _read(path, ema)
    try:
        found = recognize(state)
        return Checkpoint(state, found, recipe_in(metadata).over(recipe_beside(found, state, meta, str(path))))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_detector(path: str | os.PathLike[str]) -> Checkpoint:
    """The same of a detector's file: `state` under the fork's names, `found` its backbone."""
    state, metadata, meta = _read(path, ema=False)
    try:
        found, named = recognize(state), detector_names(state)
        classes = named.get(CLASSES)
        count = classes.shape[0] - 1 if classes is not None and classes.ndim == 2 else None
        return Checkpoint(named, found, recipe_in(metadata).over(recipe_beside(found, state, meta, str(path), count)))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_state_dict(path: str | os.PathLike[str], ema: bool = False) -> dict[str, Tensor]:
    """The state dict in a torch (.pth, .pt) or safetensors file, under its own names, on the CPU.

    The content decides the format, except that a file called .safetensors must hold that. Nothing in the file is run.
    Of an official training checkpoint `model` is taken, or `model_ema` with ema=True.

    Raises CheckpointError when there is no such file, it is damaged, it needs code to load, or it holds no state dict.
    """
    return _read(path, ema)[0]


def _read(path: str | os.PathLike[str], ema: bool) -> tuple[dict[str, Tensor], dict[str, str], Mapping[str, Any]]:
    """The state dict, the metadata of a safetensors file, and the `meta` beside the state dict in a torch file."""
    path = existing_file(path)
    truth("ema", ema)
    try:
        if path.name.endswith(SHARDS):
            return dict(state_dict_in(read_shards(path), ema)), {}, {}
        with open_regular(path) as file:
            start = file.read(9)
            if path.suffix == ".safetensors" or start[8:] == b"{":  # eight bytes of header length, then the header
                tensors, metadata = read_safetensors(file)
                return dict(state_dict_in(tensors, ema)), metadata, {}
            content = _content(file, start)
            return read_tensors(file, state_dict_in(content, ema)), {}, meta_in(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged bytes make the parsers raise anything
        why = str(error) if isinstance(error, PickleError) else type(error).__name__
        raise CheckpointError(f"{path}: {damaged(why)}") from error


def of_detector(state: Mapping[str, Any]) -> bool:
    """Whether a state dict is a whole detector's."""
    return any(isinstance(name, str) and name.endswith(CLASSES) for name in state)


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Raises CheckpointError unless it is a file, with what to give instead."""
    path = a_path("the checkpoint", path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a name that no file can have
        raise CheckpointError(
            f"{shown(path)}: no such file; pass a checkpoint's path, 'pretrained' or 'packaged'"
        ) from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{shown(path)}: {_BUNDLE if (path / MANIFEST).is_file() else _FOLDER}")
    if path.name == MANIFEST:
        raise CheckpointError(f"{shown(path)}: {_BUNDLE}")
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
    if not start:
        raise CheckpointError("is empty; download or copy it again")
    raise CheckpointError(
        f"neither a torch nor a safetensors file, it begins with {start!r}; download or copy it again"
    )


def state_dict_in(content: Any, ema: bool) -> Mapping[str, Any]:
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


def meta_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What mmpretrain writes beside the state dict; nothing of others."""
    meta = content.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | Saved) or (isinstance(value, Left) and value.kind.startswith(REBUILD))


def _kind(value: Any) -> str:
    if _is_tensor(value):
        return "Tensor"
    return shown(value.kind) if isinstance(value, Left) else type(value).__name__


_FOLDER = "is a folder; pass the checkpoint file inside it"
_BUNDLE = "is a bundle, which has an engine and no weights; run it by conformer_fast.load(folder), or --bundle FOLDER"
