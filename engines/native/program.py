"""From the network's graph to the steps of csrc/int8.h, for images of one size.

Each value between two steps is numbers of 8 bits, or float32. What is never negative, as behind ReLU, has unsigned
numbers: 255 steps between 0 and its range, where the graph has 127. The means that FCU-down reads are those of the
numbers that the next convolution reads. All else is as the graph says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from conformer_fast.errors import EngineError

from .graph import Graph, Stored, Value
from .layout import Layout, Rows, convolved, patches
from .memory import Buffer, placed
from .weights import PICTURE_CHANNELS, Packed

MOST_TOKENS = 2**15 - 1  # as in csrc/int8.h, and
LANES = 16
SPARE = 4096 + 1088  # bytes behind a buffer, which may be read; no multiple of 4096: csrc would wait for stores beside
SPARE_ROWS = 64
SIGNED, UNSIGNED = 128, 0  # the numbers that stand for zero
LARGEST = {SIGNED: 127, UNSIGNED: 255}  # how far numbers go from it
PICTURE_HALO = 3
WINDOW_READERS = {"conv3x3", "conv3x3_pool"}


class Numbers(NamedTuple):
    """A number n stands for scale * (n - zero)."""

    scale: float
    zero: int


@dataclass(frozen=True, eq=False)
class Held:
    """A value in memory: maps of this layout, or tokens. numbers: None of float32."""

    buffer: Buffer
    layout: Layout
    numbers: Numbers | None
    negative: bool


class Result(NamedTuple):
    """One of a program's results. permuted: whether it is asked for as (B, K, H, W), where it is (B, H, W, K)."""

    shape: tuple[int, ...]
    permuted: bool


class Program:
    """The steps for so many images of height x width pixels: names of _C.Int8Program's methods, and their arguments, in
    which a Buffer stands for its offset.

    weights: of each node's product, by the node's index and the prefix of its arguments' names
    """

    def __init__(
        self, graph: Graph, weights: Mapping[tuple[int, str], Packed], images: int, height: int, width: int
    ) -> None:
        self.images = images
        self.steps: list[tuple[str, dict[str, Any]]] = []
        self.results: list[Result] = []
        self._size = height, width
        self._graph, self._weights = graph, weights
        self._buffers: list[Buffer] = []
        self._held: dict[Value, Held] = {}
        self._windows = {
            node.arguments["feature_map"] for node in graph.nodes if node.operation in WINDOW_READERS
        }  # which need a halo
        for index, node in enumerate(graph.nodes):
            made = getattr(self, f"_{node.operation}")(index, **node.arguments)
            for output, held in enumerate(made if isinstance(made, tuple) else (made,)):
                self._held[Value(index, output)] = held
        for value in graph.outputs:
            self._result(value)
        self.bytes = placed(self._buffers) + SPARE

    # What the operators become. Their arguments are functional.py's; `index` is the node's.

    def _stem(self, index: int, images: Value, multiple: int, input_scale: Stored, out_scale: Stored, **_: Any) -> Held:
        height, width = self._size
        channels = self._weights[index, ""].shape[1]
        picture = Layout(self.images, height, width, PICTURE_CHANNELS, PICTURE_HALO)
        numbers = self._numbers(input_scale, negative=True)
        read = self._new(picture, numbers, negative=True)
        self._step(
            "picture",
            out=read.buffer,
            channels=channels,
            height=height,
            width=width,
            padded_width=picture.padded_width,
            numbers=numbers,
        )
        made = (height + 1) // 2, (width + 1) // 2
        out_numbers = self._numbers(out_scale, negative=False)
        rows = convolved(picture, 7, 2, *made)
        whole = self._product(index, read, rows, Layout(self.images, *made, 0), out_numbers, relu=True, row_step=2)
        pooled = [-(-((size + 1) // 2) // multiple) * multiple for size in made]
        out = self._new(replace(whole.layout, height=pooled[0], width=pooled[1]), out_numbers, negative=False)
        self._step(
            "max_pool",
            **{"in": whole.buffer, "out": out.buffer},
            images=self.images,
            height=made[0],
            width=made[1],
            channels=out.layout.channels,
            out_height=pooled[0],
            out_width=pooled[1],
        )
        return out

    def _conv1x1(
        self,
        index: int,
        feature_map: Value,
        stride: int,
        relu: bool,
        residual: Value | None,
        token_map: Value | None,
        token_stride: int,
        input_scale: Stored,
        addend_scale: Stored | None,
        out_scale: Stored | None,
        **_: Any,
    ) -> Held:
        read = self._read(feature_map, input_scale)
        height, width = (-(-size // stride) for size in (read.layout.height, read.layout.width))
        more: dict[str, Any] = {}
        if residual is not None:
            assert addend_scale is not None
            added = self._read(residual, addend_scale)
            more = {"residual": added.buffer, "residual_numbers": added.numbers}
        out = Layout(self.images, height, width, 0, halo=int(Value(index, 0) in self._windows))
        if token_map is not None:
            tokens = self._held[token_map]
            image, y, x = np.ogrid[: self.images, :height, :width]
            across, down = width // token_stride, height // token_stride
            rows = np.zeros(out.pixels, np.int32)
            rows[out.places().reshape(-1)] = ((image * down + y // token_stride) * across + x // token_stride).reshape(
                -1
            )
            more |= {"addend": tokens.buffer, "addend_rows": rows}
        numbers = None if out_scale is None else self._numbers(out_scale, negative=not relu)
        rows_read = convolved(read.layout, 1, stride, height, width)
        return self._product(index, read, rows_read, out, numbers, relu=relu, row_step=stride, **more)

    def _conv3x3(
        self, index: int, feature_map: Value, stride: int, relu: bool, input_scale: Stored, out_scale: Stored, **_: Any
    ) -> Held:
        read = self._read(feature_map, input_scale)
        height, width = (-(-size // stride) for size in (read.layout.height, read.layout.width))
        rows, out = convolved(read.layout, 3, stride, height, width), Layout(self.images, height, width, 0)
        return self._product(
            index, read, rows, out, self._numbers(out_scale, negative=not relu), relu=relu, row_step=stride
        )

    def _conv3x3_pool(self, index: int, pool_stride: int, pooled_scale: Stored, **arguments: Any) -> tuple[Held, Held]:
        made = self._conv3x3(index, relu=True, **arguments)
        layout = made.layout
        means = replace(layout, height=layout.height // pool_stride, width=layout.width // pool_stride)
        pooled = self._new(means, self._numbers(pooled_scale, negative=False), negative=False)
        self._step(
            "average",
            **{"in": made.buffer, "out": pooled.buffer},
            in_numbers=made.numbers,
            out_numbers=pooled.numbers,
            images=self.images,
            height=layout.height,
            width=layout.width,
            channels=layout.channels,
            stride=pool_stride,
        )
        return made, pooled

    def _linear(
        self,
        index: int,
        x: Value,
        gelu: bool,
        residual: Value | None,
        input_scale: Stored,
        out_scale: Stored | None,
        **_: Any,
    ) -> Held:
        read = self._read(x, input_scale)
        more: dict[str, Any] = {} if residual is None else {"residual_floats": self._held[residual].buffer}
        numbers = None if out_scale is None else self._numbers(out_scale, negative=True)
        return self._product(index, read, _in_order(read.layout), read.layout, numbers, gelu=gelu, **more)

    def _attention(
        self, index: int, qkv: Value, num_heads: int, qkv_scale: Stored, out_scale: Stored, **_: Any
    ) -> Held:
        read = self._read(qkv, qkv_scale)
        assert read.numbers is not None
        if read.layout.width > MOST_TOKENS:
            raise EngineError(
                f"attention in 8 bits has at most {MOST_TOKENS:,} tokens, and of {self._size[0]}x{self._size[1]} "
                f"pixels it has {read.layout.width:,}; give smaller images, or compile with backend='openvino'"
            )
        channels = read.layout.channels // 3
        out = self._new(replace(read.layout, channels=channels), self._numbers(out_scale, negative=True), negative=True)
        self._step(
            "attention",
            qkv=read.buffer,
            out=out.buffer,
            out_numbers=out.numbers,
            scale=read.numbers.scale,
            images=self.images,
            tokens=read.layout.width,
            heads=num_heads,
            size=channels // num_heads,
        )
        return out

    def _linear_norm(
        self, index: int, x: Value, residual: Value, input_scale: Stored, normed_scale: Stored, **norm: Any
    ) -> tuple[Held, Held]:
        read = self._read(x, input_scale)
        out = self._product(
            index, read, _in_order(read.layout), read.layout, None, residual_floats=self._held[residual].buffer
        )
        return out, self._norm(out, normed_scale, **norm)

    def _patch_embed(
        self,
        index: int,
        stem_map: Value,
        cls_token: Stored,
        input_scale: Stored,
        normed_scale: Stored,
        **norm: Any,
    ) -> tuple[Held, Held]:
        read = self._read(stem_map, input_scale)
        side = self._weights[index, ""].shape[-1]
        rows = patches(read.layout, side)
        assert rows.results is not None
        count = (read.layout.height // side) * (read.layout.width // side)
        results = np.where(rows.results < 0, -1, rows.results + rows.results // count + 1)  # behind class tokens
        token = self._graph.tensors[cls_token.name].reshape(-1).numpy()
        out = Layout(self.images, 1, 1 + count, 0)
        tokens = self._product(
            index, read, rows._replace(results=results.astype(np.int32)), out, None, row_step=side, in_order=True
        )
        size = len(token) * token.itemsize
        self._step(
            "copy",
            **{"from": token.view(np.uint8), "out": tokens.buffer},
            images=self.images,
            image_step=(1 + count) * size,
            count=1,
            step=size,
            bytes=size,
            behind=0,
        )
        return tokens, self._norm(tokens, normed_scale, **norm)

    def _fcu_down(
        self,
        index: int,
        feature_map: Value,
        tokens: Value,
        inner_weight: Stored,
        inner_bias: Stored,
        inner_eps: float,
        norm_weight: Stored,
        norm_bias: Stored,
        norm_eps: float,
        input_scale: Stored,
        normed_scale: Stored,
        **_: Any,
    ) -> tuple[Held, Held]:
        read, before = self._read(feature_map, input_scale), self._held[tokens]
        projected = self._product(index, read, _in_order(read.layout), read.layout, None)
        out = self._new(before.layout, None, negative=True)
        normed = self._new(before.layout, self._numbers(normed_scale, negative=True), negative=True)
        self._step(
            "couple",
            projected=projected.buffer,
            inner_weight=self._array(inner_weight),
            inner_bias=self._array(inner_bias),
            inner_eps=inner_eps,
            tokens=before.buffer,
            out_tokens=out.buffer,
            images=self.images,
            tokens_per_image=before.layout.width,
            channels=before.layout.channels,
            weight=self._array(norm_weight),
            bias=self._array(norm_bias),
            eps=norm_eps,
            out=normed.buffer,
            out_numbers=normed.numbers,
        )
        return out, normed

    def _fcu_up(self, index: int, tokens: Value, input_scale: Stored, **_: Any) -> Held:
        read = self._read(tokens, input_scale)
        count = read.layout.width - 1
        token = np.arange(read.layout.pixels, dtype=np.int32)
        results = np.where(token % (count + 1) == 0, -1, token - token // (count + 1) - 1)  # without class tokens
        rows = Rows(len(token), None, results.astype(np.int32))
        return self._product(index, read, rows, replace(read.layout, width=count), None, relu=True, in_order=True)

    def _pool(self, index: int, feature_map: Value, tokens: Value, **norm: Any) -> tuple[Held, Held]:
        read = self._held[feature_map]
        assert read.numbers is None
        layout = read.layout
        means = self._new(Layout(self.images, 1, 1, layout.channels), None, negative=True)
        self._step(
            "mean",
            **{"in": read.buffer, "out": means.buffer},
            images=self.images,
            pixels=layout.height * layout.width,
            channels=layout.channels,
        )
        every = self._held[tokens]
        first = replace(every, layout=replace(every.layout, width=1))
        return means, self._norm(first, None, row_step=every.layout.width * every.layout.channels, **norm)

    def _heads(self, index: int, feature_map: Value, tokens: Value, **arguments: Any) -> tuple[Held, Held, Held]:
        norm = {name: arguments[name] for name in ("norm_weight", "norm_bias", "norm_eps")}
        both = self._pool(index, feature_map, tokens, **norm)
        conv, trans = (
            self._product(index, read, _in_order(read.layout), read.layout, None, prefix=prefix)
            for read, prefix in zip(both, ("conv_", "trans_"), strict=True)
        )
        total = self._product(
            index,
            both[1],
            _in_order(both[1].layout),
            both[1].layout,
            None,
            prefix="trans_",
            residual_floats=conv.buffer,
        )
        return conv, trans, total

    def _permute(self, index: int, input: Value, **_: Any) -> Held:
        return self._held[input]

    # The steps that these are made of.

    def _product(
        self,
        index: int,
        read: Held,
        rows: Rows,
        out: Layout,
        numbers: Numbers | None,
        *,
        prefix: str = "",
        relu: bool = False,
        gelu: bool = False,
        row_step: int = 1,
        in_order: bool = False,
        **added: Any,
    ) -> Held:
        """The result, of the layout `out` but for its channels. in_order: whether rows.results are places of `out`."""
        weights = self._weights[index, prefix]
        made = self._new(replace(out, channels=weights.columns), numbers, negative=not relu)
        results = rows.results
        if out.halo or (results is not None and not in_order):
            places = out.places().reshape(-1)
            chosen = np.arange(rows.rows) if results is None else results
            results = np.where(chosen < 0, -1, places[chosen]).astype(np.int32)
        line = read.layout.padded_width * read.layout.channels
        scales, bias = weights.scales, weights.bias
        if read.numbers is not None:  # what their zero adds to a sum is taken from the bias
            scales = scales * read.numbers.scale
            bias = bias - weights.sums * scales * read.numbers.zero
        self._step(
            "product",
            **{"in": read.buffer},
            row_step=row_step * read.layout.channels,
            tiles=rows.tiles,
            taps=weights.taps,
            depth=weights.depth,
            tap=np.arange(weights.taps, dtype=np.int32) * line,
            weights=weights.weights,
            scales=scales.astype(np.float32),
            bias=bias.astype(np.float32),
            in_floats=read.numbers is None,
            rows=rows.rows,
            columns=weights.columns,
            out_rows=results,
            relu=relu,
            gelu=gelu,
            out=made.buffer,
            out_floats=numbers is None,
            out_numbers=numbers,
            **added,
        )
        if made.layout.halo:
            self._around(made)
        return made

    def _norm(
        self,
        tokens: Held,
        scale: Stored | None,
        norm_weight: Stored,
        norm_bias: Stored,
        norm_eps: float,
        row_step: int | None = None,
        **_: Any,
    ) -> Held:
        numbers = None if scale is None else self._numbers(scale, negative=True)
        out = self._new(tokens.layout, numbers, negative=True)
        self._step(
            "norm",
            tokens=tokens.buffer,
            rows=tokens.layout.pixels,
            channels=tokens.layout.channels,
            row_step=row_step,
            weight=self._array(norm_weight),
            bias=self._array(norm_bias),
            eps=norm_eps,
            **{"out_values" if numbers is None else "out": out.buffer},
            out_numbers=numbers,
        )
        return out

    def _around(self, held: Held) -> None:
        """Writes what stands for zero around maps of one byte a channel."""
        assert held.numbers is not None
        layout = held.layout
        line, channels = layout.padded_width * layout.channels, layout.channels
        common = {"out": held.buffer, "images": self.images, "image_step": layout.padded_height * line}
        zeros = np.full(line + channels, held.numbers.zero, np.uint8)
        ends = (layout.padded_height - 1) * line - channels
        self._step("copy", **common, **{"from": zeros}, bytes=line + channels, count=2, step=ends, behind=0)
        if layout.height > 1:
            pairs = {"bytes": 2 * channels, "count": layout.height - 1, "step": line, "behind": 2 * line - channels}
            self._step("copy", **common, **{"from": zeros}, **pairs)

    def _read(self, value: Value, scale: Stored) -> Held:
        """The value as the numbers that a product reads."""
        held = self._held[value]
        if held.numbers is not None:
            return held
        layout = held.layout
        made = self._new(layout, self._numbers(scale, held.negative), held.negative)
        count = -(-layout.pixels * layout.channels // LANES) * LANES
        self._step("quantize", **{"in": held.buffer, "out": made.buffer}, count=count, numbers=made.numbers)
        return made

    def _numbers(self, scale: Stored, negative: bool) -> Numbers:
        """Those of the graph, whose numbers have a sign, or finer ones."""
        zero = SIGNED if negative else UNSIGNED
        return Numbers(float(self._graph.tensors[scale.name]) * LARGEST[SIGNED] / LARGEST[zero], zero)

    def _array(self, stored: Stored) -> np.ndarray:
        return self._graph.tensors[stored.name].numpy()

    def _new(self, layout: Layout, numbers: Numbers | None, negative: bool) -> Held:
        size = (layout.pixels + SPARE_ROWS) * layout.channels * (4 if numbers is None else 1) + SPARE
        self._buffers.append(Buffer(size, len(self.steps), len(self.steps)))
        return Held(self._buffers[-1], layout, numbers, negative)

    def _step(self, name: str, **fields: Any) -> None:
        for field in fields.values():
            if isinstance(field, Buffer):
                field.last = len(self.steps)
        self.steps.append((name, fields))

    def _result(self, value: Value) -> None:
        held, layout = self._held[value], self._held[value].layout
        held.buffer.last = len(self.steps)
        permuted = self._graph.nodes[value.node].operation == "permute"
        shape = (layout.height, layout.width) if permuted else (layout.width,) if layout.width > 1 else ()
        self.results.append(Result((*shape, layout.channels), permuted))
        self.steps.append(("result", {"offset": held.buffer, "count": layout.height * layout.width * layout.channels}))


def _in_order(layout: Layout) -> Rows:
    return Rows(layout.pixels, None, None)
