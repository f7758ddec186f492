"""create_model(): the reference with somebody's weights in it."""

from __future__ import annotations

import os

import torch

from ..model.config import ConformerConfig, get_config
from ..model.forked import before_computing
from ..model.recipe import usual_recipe
from ..model.reference import Conformer
from ..model.shapes import Pad


def create_model(
    name: str | ConformerConfig,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    *,
    features_only: bool = False,
    pad: Pad = "stem",
) -> Conformer:
    """The reference model in eval mode.

    name:        a variant's name ("tiny-p16", "small-p32", "small-p16", "base-p16", "digits"; or as the official
                 repository calls it, "Conformer_small_patch16") or a configuration
    weights:     a checkpoint's path; "pretrained" downloads the published file; "packaged" takes the one that ships
                 with this package (digits); None leaves random values
    num_classes: default: what the weights file holds, else the configuration's own (1000 for the published variants)

    Its `recipe` is what the file says of itself; of a published file, what is published.

    Raises ArgumentError for an unknown name, CheckpointError for weights that do not fit, DownloadError if there is no
    network.
    """
    config = get_config(name, num_classes)
    before_computing()
    if weights is None:
        return Conformer(config, features_only, pad).eval()
    from ..checkpoints.reading import read_checkpoint
    from ..checkpoints.weights import resolve_weights, with_weights
    from ..errors import CheckpointError

    path = resolve_weights(name, weights)
    checkpoint = read_checkpoint(path)
    found = checkpoint.found
    try:
        if num_classes is None and not features_only:
            config = get_config(config, found.num_classes)
        recipe = usual_recipe(config) if weights == "pretrained" else checkpoint.recipe
        return with_weights(config, found, recipe, features_only, pad, like=torch.empty(0)).eval()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
