"""A model's recipe in its weights file: one JSON value in the metadata of safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors

from ..errors import CheckpointError
from ..model.recipe import Recipe

KEY = "conformer_fast"
MOST_CHARACTERS = 1 << 22  # 22,000 names of classes have 500,000


def metadata_of(recipe: Recipe) -> dict[str, str]:
    """What a safetensors file has beside the tensors."""
    known = recipe.known()
    return {"format": "pt"} | ({KEY: json.dumps(known)} if known else {})


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """What a weights file says of its model. A torch file, or one without our key, says nothing.

    Raises CheckpointError, which names the key, for a value that is no recipe.
    """
    if not is_safetensors(Path(path)):
        return Recipe()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
    except Exception as error:  # damaged bytes
        raise CheckpointError(f"{path}: its header cannot be read ({error}); download or copy it again") from error
    if text is None:
        return Recipe()
    if len(text) > MOST_CHARACTERS:
        raise CheckpointError(f"{path}: its metadata {KEY!r} has {len(text)} characters; {_ADVICE}")
    try:
        return Recipe.from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata {KEY!r} is no recipe: {error}; {_ADVICE}") from error


def is_safetensors(path: Path) -> bool:
    """By its name or its beginning: eight bytes of header length, then the header."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


_ADVICE = "write the file again with conformer_fast.save_weights"
