"""What was given to compile(): a reference model of it, and the structure that its own forward returns.

Models of other implementations are recognized by their parameter names. A given module is run once on a small image, in
its eval mode: that shows the structure of its output, and proves that the reference computes the same values.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError
from ..model.config import ConformerConfig
from ..model.detector.reference import Detector
from ..model.distance import relative_error
from ..model.forked import before_computing
from ..model.outputs import LOGITS, SUM, Softmax, feature_names, rebuild, reference_outputs
from ..model.recipe import Recipe
from ..model.reference import Conformer, ConformerFeatures, ConformerOutput
from ..model.shapes import Pad
from .dialects import Recognized, recognize
from .reading import of_detector, read_checkpoint
from .weights import with_weights

Model = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
AGREEMENT = {torch.float64: 1e-4, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest relative difference, by the given module's dtype, that still is the same model; a wrong one differs by 1."""


@dataclass(frozen=True)
class Source:
    """reference: our own copy, in eval mode. outputs: names of InferenceConformer.outputs in the order of the leaves of
    structure, a nest of lists and tuples that `rebuild` fills."""

    reference: Conformer
    outputs: tuple[str, ...]
    structure: Any


def adopt(model: Model) -> Source:
    """Recognizes `model`: a reference Conformer, another implementation's module, a state dict or a checkpoint's path.

    Raises CheckpointError when its names or sizes are not a Conformer's, ArgumentError when a module is in training
    mode, has outputs that are not known or computes something else than a Conformer.
    """
    before_computing()
    if isinstance(model, Detector):
        raise ArgumentTypeError(
            "a Detector is given where a Conformer is asked for; compile, calibrate, build, evaluate_detector take it"
        )
    if isinstance(model, nn.Module):
        return _from_module(model)
    if isinstance(model, str | os.PathLike):
        checkpoint = read_checkpoint(model)
        _warn_of_detector(checkpoint.state)
        try:
            return _own(_reference(checkpoint.found, checkpoint.recipe))
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(model)}: {error}") from None
    if not isinstance(model, Mapping):
        raise ArgumentTypeError(
            f"the model must be a module, a state dict or a checkpoint's path, not a {type(model).__name__}"
        )
    _warn_of_detector(model)
    return _own(_reference(recognize(model), Recipe()))


def _warn_of_detector(state: Mapping[str, Tensor]) -> None:
    if of_detector(state):
        warnings.warn("the weights are a detector's: taken as its backbone; create_detector takes all", stacklevel=4)


def _own(reference: Conformer) -> Source:
    if not reference.features_only:
        return Source(reference, LOGITS, ConformerOutput._make(LOGITS))
    *maps, tokens = outputs = feature_names(reference.config)
    return Source(reference, outputs, ConformerFeatures._make((tuple(maps), tokens)))


def _reference(found: Recognized, recipe: Recipe) -> Conformer:
    config = found.config(recipe.num_heads)
    model = _filled(config, found, recipe, features_only=found.num_classes is None)
    if model.features_only and _norm_in(found):  # mmpretrain's backbone normalizes its class tokens itself
        model.trans_norm = nn.LayerNorm(model.config.embed_dim, device="cpu", dtype=torch.float32)
        with torch.no_grad():
            model.trans_norm.weight.copy_(found.state["trans_norm.weight"])
            model.trans_norm.bias.copy_(found.state["trans_norm.bias"])
    return model.eval().requires_grad_(False)


def _filled(
    config: ConformerConfig, found: Recognized, recipe: Recipe, features_only: bool, pad: Pad = "stem"
) -> Conformer:
    """A model with these weights: fp32, on the CPU, whatever PyTorch's defaults."""
    like = torch.empty(0, device="cpu", dtype=torch.float32)
    return with_weights(config, found, recipe, features_only, pad, like).eval().requires_grad_(False)


def _norm_in(found: Recognized) -> bool:
    return {"trans_norm.weight", "trans_norm.bias"} <= found.state.keys()


def _from_module(module: nn.Module) -> Source:
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    if any(part.training for part in module.modules()):
        raise ArgumentError("the model, or a part of it, is in training mode; call model.eval() first")
    if isinstance(module, Conformer):
        found = recognize(module.state_dict())
        reference = _filled(module.config, found, module.recipe, module.features_only, module.pad)
        return _matched(module, reference, has_norm=not module.features_only)
    found = recognize(module.state_dict())
    counts = (getattr(part, "num_heads", None) for part in module.modules())
    heads = {count for count in counts if isinstance(count, int)}
    if len(heads) > 1:
        raise ArgumentError(f"the model's blocks have different numbers of attention heads: {sorted(heads)}")
    reference = _reference(found, Recipe(num_heads=heads.pop() if heads else None))
    return _matched(module, reference, _norm_in(found))


def _matched(module: nn.Module, reference: Conformer, has_norm: bool) -> Source:
    """Finds which of the reference's outputs the module returns, by running both on one small image."""
    some = next(module.parameters())
    size = 2 * reference.config.patch_size
    generator = torch.Generator().manual_seed(0)
    shape = 1, reference.config.in_channels, size, size
    image = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
    with torch.no_grad(), torch.autocast(some.device.type, enabled=False):
        theirs = module(image.to(some.device, some.dtype))
        leaves = _leaves(theirs)
        without_classes = has_norm and len(leaves) == 2 and not leaves[0].numel()
        outputs: tuple[str, ...] = (f"{reference.config.depth}.class_token",)
        if without_classes:
            del leaves[0]
        else:
            outputs = _names(module, reference, len(leaves), has_norm)
        ours = reference_outputs(reference, image, outputs)
    if outputs == (SUM,) and _is_softmax(leaves[0], ours[0]):
        theirs = rebuild(theirs, [Softmax(leaves)])
        leaves, ours = [_centered(leaves[0].float().log())], (_centered(ours[0]),)
    for name, expected, leaf in zip(outputs, ours, leaves, strict=True):
        leaf = leaf.detach().cpu().float()
        if leaf.shape != expected.shape:
            raise ArgumentError(
                f"the model's {name} has shape {tuple(leaf.shape)}, a Conformer's {tuple(expected.shape)}"
            )
        error = relative_error(leaf, expected)
        if not error <= AGREEMENT.get(some.dtype, 1e-2):
            raise ArgumentError(
                f"the model has a Conformer's parameter names but computes something else "
                f"({name} has a relative error of {error:.2g} on a {size}x{size} image)"
            )
    if without_classes:
        warnings.warn(_NO_CLASSES, stacklevel=5)
        return _own(reference)
    return Source(reference, outputs, theirs)


_NO_CLASSES = (  # which the official class has with num_classes=0
    "the model has no classes: taken as a backbone, as its state dict is, which returns maps and tokens"
)


def _is_softmax(leaf: Tensor, logits: Tensor) -> bool:
    one = leaf.detach().float().sum(-1)
    return leaf.shape == logits.shape and bool(
        (leaf >= 0).all() and torch.allclose(one, torch.ones_like(one), atol=0.01)
    )


def _centered(scores: Tensor) -> Tensor:
    """Less their mean: the logits and the logarithms of their softmax then are the same."""
    return scores - scores.mean(-1, keepdim=True)


def _names(module: nn.Module, reference: Conformer, count: int, has_norm: bool) -> tuple[str, ...]:
    """Our names of the `count` tensors that the module returns."""
    config = reference.config
    names: tuple[str, ...]
    if isinstance(module, Conformer):
        names = _own(reference).outputs
    elif not reference.features_only:
        names = (SUM,) if count == 1 else LOGITS
    elif has_norm:  # mmpretrain's backbone: pooled map and class token of each requested block
        blocks = sorted({index for index in getattr(module, "out_indices", [config.depth]) if index > 1})
        names = tuple(f"{block}.{kind}" for block in blocks for kind in ("pooled", "class_token"))
    else:  # mmdetection's: the maps alone
        names = tuple(f"{block}.map" for block in config.feature_blocks)
    if len(names) != count:
        raise ArgumentError(
            f"the model returns {count} tensors, which is none of the known forms (two logits, or their sum; "
            f"{len(config.feature_blocks)} maps; pooled map and class token per block); give its state dict instead"
        )
    return names


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    raise ArgumentError(f"the model returns a {type(value).__name__}; give its state dict instead")
