"""Writing of weights as safetensors, with what they say of their model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping

import safetensors.torch
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError, a_path, shown
from ..model.forked import before_computing
from ..model.recipe import USUAL, Recipe, checked
from ..storage.outputs import AnyPath, check_output, write_output
from .dialects import Dialect, Recognized, to_dialect
from .metadata import metadata_of
from .reading import existing_file, of_detector, read_checkpoint
from .safetensors_files import shards_beside
from .weights import LoadReport


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
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(
            f"the weights must be a state dict, as model.state_dict(), got a {type(state).__name__}"
        )
    _check_tensors(state)
    _check_target(path)
    _check_recipe(checked(recipe), Recognized("official", dict(state), 0))
    before_computing()
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
    source = existing_file(source)
    _check_target(target, [source, *shards_beside(source)])
    before_computing()
    checked(recipe)
    checkpoint = read_checkpoint(source)
    if of_detector(checkpoint.state):
        warnings.warn(f"{source} is a detector's: its backbone alone is written", stacklevel=2)
    found, said = checkpoint.found, checkpoint.recipe
    save_weights(found.state, target, dialect, recipe=recipe.over(said))
    others = said.denies(recipe)
    if others:
        warnings.warn(f"{', '.join(others)} as given; {source} says otherwise", stacklevel=2)
    return LoadReport(found.dialect, len(found.state), len(checkpoint.state) - len(found.state))


def _check_tensors(state: Mapping[str, Tensor]) -> None:
    """Raises ArgumentError unless there are tensors, by their names, and nothing else."""
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ArgumentTypeError(
                f"the weights must be tensors by their names, as model.state_dict(); {shown(repr(name))} is a "
                f"{type(tensor).__name__}"
            )
    if not state:
        raise ArgumentError("there are no weights to write; give model.state_dict()")


def _check_target(path: AnyPath, inputs: Iterable[AnyPath] = ()) -> None:
    """Raises CheckpointError unless weights that are made from these inputs can be written there."""
    if a_path("the output", path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: weights are written as safetensors; give a name that ends in .safetensors")
    try:
        check_output(path, inputs)
    except (ArgumentError, OSError) as error:
        raise CheckpointError(str(error)) from error


def _check_recipe(recipe: Recipe, found: Recognized) -> None:
    """Raises ArgumentError for one that does not fit the tensors. What it does not say is not looked for in them."""
    if recipe != Recipe():
        recipe.check(found.config(recipe.num_heads or 1), heads=found.num_classes is not None)
