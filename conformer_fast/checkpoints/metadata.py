"""A model's recipe in its weights file: one JSON value in the metadata of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import CheckpointError, shown
from ..model.recipe import Recipe

KEY = "conformer_fast"
MOST_CHARACTERS = 1 << 22  # 22,000 names of classes have 500,000


def metadata_of(recipe: Recipe) -> dict[str, str]:
    """What a safetensors file has beside the tensors."""
    known = recipe.known()
    return {"format": "pt"} | ({KEY: json.dumps(known)} if known else {})


def recipe_in(metadata: Mapping[str, str]) -> Recipe:
    """What a safetensors file's metadata say of its model; without our key, nothing.

    Raises CheckpointError, which names the key, for a value that is no recipe.
    """
    text = metadata.get(KEY)
    if text is None:
        return Recipe()
    if len(text) > MOST_CHARACTERS:
        raise CheckpointError(f"its metadata {KEY!r} has {len(text)} characters; {_ADVICE}")
    try:
        return Recipe.from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its metadata {KEY!r} is no recipe: {shown(error)}; {_ADVICE}") from error


_ADVICE = "write the file again with conformer_fast.save_weights"
