"""What the products of an inference model read, as they multiply it, and what attention does. The heads are not among
them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import ArgumentError
from ..inference.base import InferenceNetwork
from ..inference.network import InferenceConformer
from ..inference.ops import operation_of
from ..inference.quantization import addend_of, result_of
from ..inference.trace import trace
from ..model import functional
from ..model.shapes import check_image_size

See = Callable[[str, Tensor], None]


class Observer(fx.Interpreter):
    """Runs an inference model, in fp32, and shows what its products read.

    multiply_adds: of each product over all images so far, by its name
    """

    def __init__(self, model: InferenceNetwork) -> None:
        graph = trace(model)
        graph.eliminate_dead_code()
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # of fx, in the messages of our own errors
        self.multiply_adds: dict[str, int] = {}
        self._model, self._products = model, frozenset(model.quantizable)
        self._see: See = lambda name, value: None

    def observe(self, images: Tensor, see: See) -> tuple[Tensor, ...]:
        """Calls see(name, value) for the input of each product, by the product's name ("conv_trans_2.trans_block.fc1"),
        for the residuals that bottlenecks add, by `addend_of` their product, and for queries, keys and values, by
        `result_of` theirs.

        images: (B, in_channels, H, W), normalized, on the model's device; none of them is no error

        Returns what the model returns; nothing for no images.

        Raises ArgumentError when they do not fit the model, or one of the values is NaN or infinite.
        """
        if isinstance(self._model, InferenceConformer):
            check_image_size(images, self._model.config)
        if not len(images):
            return ()
        self._see = see
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.run(images)

    def run_node(self, n: fx.Node) -> Any:
        read = _READ.get(operation_of(n)) if n.op == "call_function" else None
        if not read:
            return super().run_node(n)
        call = _signature(operation_of(n)).bind(*n.args, **n.kwargs)
        call.apply_defaults()
        product = call.arguments["weight"].target.removesuffix(".weight")
        if product not in self._products:
            return super().run_node(n)
        arguments = fx.node.map_arg(call.arguments, self.env.__getitem__)
        for name, value in zip((product, addend_of(product)), read(**arguments), strict=False):
            self._show(name, value, f"the input of {name}")
        result = super().run_node(n)
        output = result[0] if isinstance(result, tuple) else result
        if product.endswith(".qkv"):
            self._show(result_of(product), output, f"the result of {product}")
        positions = output.shape[:-1].numel()
        if operation_of(n) == "stem":
            positions = len(output) * math.prod((size + 1) // 2 for size in arguments["images"].shape[2:])
        if operation_of(n) in ("patch_embed", "fcu_down"):
            positions -= len(output)  # the class token, which they only pass on
        done = self.multiply_adds.get(product, 0)
        self.multiply_adds[product] = done + positions * arguments["weight"].numel()
        return result

    def _show(self, name: str, value: Tensor, what: str) -> None:
        if value.numel() and not all(map(math.isfinite, torch.stack(value.aminmax()).tolist())):
            raise ArgumentError(f"calibration: {what} is NaN or infinite; check the images and the weights")
        self._see(name, value)


@cache
def _signature(operation: str) -> inspect.Signature:
    return inspect.signature(getattr(functional, operation))


def spread(batches: Sequence[Tensor], images: int) -> Iterator[Tensor]:
    """About so many of the images, in whole batches taken evenly: pictures often come sorted by class."""
    first = batches[0] if len(batches) else ()
    count = min(len(batches), max(1, math.ceil(images / max(1, len(first)))))
    return (batches[index * len(batches) // count] for index in range(count))


def _conv1x1(feature_map, residual, **_):
    yield feature_map
    if residual is not None:
        yield residual


# What the product of each operation reads, from the operation's arguments; then what it adds.
_READ: dict[str, Callable[..., Iterable[Tensor]]] = {
    "stem": lambda images, **_: [images],
    "linear": lambda x, **_: [x],
    "linear_norm": lambda x, **_: [x],
    "conv1x1": _conv1x1,
    "conv3x3": lambda feature_map, **_: [feature_map],
    "lateral": lambda feature_map, **_: [feature_map],
    "conv3x3_pool": lambda feature_map, **_: [feature_map],
    "patch_embed": lambda stem_map, **_: [stem_map],
    "fcu_down": lambda feature_map, stride, **_: [functional.average(feature_map, stride)],
    "fcu_up": lambda tokens, **_: [tokens[:, 1:]],
}
