"""The ranges of what a model's products read, measured on images: engines in 8 bits take their scales from them.

A product's input is measured as it is multiplied: after its layer norm, with FCU-up's map added, pooled for FCU-down.
Not measured are the stem and the heads, which stay in 16 bits or more, and what attention multiplies.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from tqdm import tqdm

from . import functional
from .engines.quantize import addend_of
from .fuse import InferenceConformer
from .model import check_image_size
from .ops import operation_of

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".gif"}


def input_ranges(model: InferenceConformer, batches: Iterable[Tensor]) -> dict[str, float]:
    """The largest magnitude that the input of each product takes over all images, by the product's name
    ("conv_trans_2.trans_block.fc1"); and that of the residuals that bottlenecks add, by `addend_of` their product.

    model:   in fp32, on the device of the images
    batches: images (B, in_channels, H, W), normalised as for the model

    Raises ValueError when there are no images, when they do not fit the model, or when one of the values is not finite.
    """
    observer = _Observer(model)
    with torch.no_grad(), torch.autocast(model.stem.weight.device.type, enabled=False):
        for images in batches:
            check_image_size(images, model.config)
            if len(images):
                observer.run(images)
    ranges = {name: largest.item() for name, largest in observer.largest.items()}
    if not ranges:
        raise ValueError("calibration got no images; give some that are like those the model will see")
    bad = [name for name, largest in ranges.items() if not largest < torch.finfo(torch.float32).max]
    if bad:
        raise ValueError(f"calibration: the input of {bad[0]} is NaN or infinite; check the images and the weights")
    return ranges


def images_in(folder: str | os.PathLike[str], size: int, limit: int, batch: int = 8) -> Iterator[Tensor]:
    """The pictures below a folder as batches (B, 3, size, size) of the published preprocessing.

    limit: how many to take, evenly from all by name, so that each subfolder has its share

    Raises ImageError for a picture that cannot be used, ValueError when there is none.
    """
    from .preprocess import load_batch

    if not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder} of pictures for calibration")
    pictures = (path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    paths = sorted(path for path in pictures if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} has no pictures for calibration ({', '.join(sorted(PICTURES))})")
    count = min(limit, len(paths))
    taken = [paths[index * len(paths) // count] for index in range(count)]
    with tqdm(total=count, desc="calibrating", unit="image", disable=not sys.stderr.isatty(), leave=False) as progress:
        for start in range(0, count, batch):
            part = taken[start : start + batch]
            yield load_batch(part, size)
            progress.update(len(part))


class _Observer(fx.Interpreter):
    """Runs the traced model and keeps what its products read."""

    def __init__(self, model: InferenceConformer) -> None:
        graph = fx.symbolic_trace(model).graph
        graph.eliminate_dead_code()
        super().__init__(fx.GraphModule(model, graph))
        self.largest: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        read = _READ.get(operation_of(n)) if n.op == "call_function" else None
        if read:
            call = inspect.signature(getattr(functional, operation_of(n))).bind(*n.args, **n.kwargs)
            call.apply_defaults()
            product = call.arguments["weight"].target.removesuffix(".weight")
            arguments = fx.node.map_arg(call.arguments, self.env.__getitem__)
            for name, value in zip((product, addend_of(product)), read(**arguments), strict=False):
                self._keep(name, value)
        return super().run_node(n)

    def _keep(self, name: str, value: Tensor) -> None:
        largest = value.abs().amax()
        self.largest[name] = torch.maximum(self.largest[name], largest) if name in self.largest else largest


def _linear(x, norm_weight, norm_bias, norm_eps, **_):
    yield x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, norm_eps)


def _conv1x1(feature_map, residual, **_):
    yield feature_map
    if residual is not None:
        yield residual


def _conv3x3(feature_map, token_map=None, token_stride=1, **_):
    yield feature_map if token_map is None else functional.with_token_map(feature_map, token_map, token_stride)


# What the product of each operation reads, from the operation's arguments; then what it adds.
_READ: dict[str, Callable[..., Iterable[Tensor]]] = {
    "linear": _linear,
    "conv1x1": _conv1x1,
    "conv3x3": _conv3x3,
    "conv3x3_pool": _conv3x3,
    "patch_embed": lambda stem_map, **_: [stem_map],
    "fcu_down": lambda feature_map, stride, **_: [functional.average(feature_map, stride)],
    "fcu_up": lambda tokens, **_: [tokens[:, 1:]],
}
