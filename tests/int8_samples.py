"""One step of csrc/int8.h each, of random values, and what it makes in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from int8_steps import SIGNED, Step

from conformer_fast.engines.native.graph import Node, Stored
from conformer_fast.engines.native.layout import Layout, Rows, convolved
from conformer_fast.engines.native.program import Numbers
from conformer_fast.engines.native.weights import packed

GELU_PRECISION = 4e-6  # as csrc/int8_rows.h says
WEIGHT_ERROR = 0.55  # of attention's weights of 16 bits: a half, and what float32 adds to it
MOST_WEIGHT = 65535
EPS = 1e-6


def product(
    maps: Layout,
    columns: int,
    *,
    window: int = 1,
    stride: int = 1,
    patches: bool = False,  # windows beside each other
    out_halo: int = 0,
    leaves_out: int = 0,  # every so many-th result
    zero: int | None = 128,  # None: reads float32
    numbers: Numbers | None = None,
    residual: Numbers | None = None,
    floats: bool = False,
    addend: bool = False,
    relu: bool = False,
    gelu: bool = False,
) -> Step:
    """A convolution of `maps` as the engine lays it out; a linear layer is one of a map one pixel high."""
    random = np.random.default_rng(0)
    height, width = (side // window if patches else -(-side // stride) for side in (maps.height, maps.width))
    rows = convolved(maps, 1, window, height, width) if patches else convolved(maps, window, stride, height, width)
    out = Layout(maps.images, height, width, columns, out_halo)
    values, given = _values(random, maps, zero)
    fields, weight, bias = weight_of(random, columns, maps.channels, window, zero)
    results = F.conv2d(
        torch.from_numpy(values).permute(0, 3, 1, 2),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=window if patches else stride,
        padding=0 if patches else window // 2,
    )
    places = out.places().reshape(-1)
    sums = np.full((out.pixels, columns), np.nan)
    sums[places] = results.permute(0, 2, 3, 1).reshape(-1, columns).numpy()

    step = Step("product", relu=relu, gelu=gelu, out_floats=numbers is None, out_numbers=numbers, **fields)
    step.put("in", given)
    step.fields |= _taps(maps, rows, window, window if patches else stride)
    chosen = np.arange(rows.rows) if rows.results is None else rows.results
    to = np.where(chosen < 0, -1, places[chosen])
    if leaves_out:
        left_out = to[::leaves_out]
        sums[left_out[left_out >= 0]] = np.nan
        to[::leaves_out] = -1
    if rows.results is not None or out_halo or leaves_out:
        step.fields["out_rows"] = to.astype(np.int32)
    if residual:
        added = random.integers(0, 256, sums.shape, np.uint8)
        step.put("residual", added)
        step.fields["residual_numbers"] = residual
        sums += (added.astype(np.float64) - residual.zero) * residual.scale
    sums = np.maximum(sums, 0) if relu else sums
    sums = F.gelu(torch.from_numpy(sums)).numpy() if gelu else sums
    if floats:
        added = random.standard_normal(sums.shape, np.float32)
        step.put("residual_floats", added)
        sums += added
    if addend:
        added = random.standard_normal((5, columns), np.float32)
        step.put("addend", added)
        step.fields["addend_rows"] = random.integers(0, 5, len(sums), np.int32)
        sums += added[step.fields["addend_rows"]]
    step.makes("out", sums, numbers, GELU_PRECISION * max(1.0, np.nanmax(np.abs(sums))) if gelu else 0.0)
    return step


def _values(random: np.random.Generator, maps: Layout, zero: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Random maps in float64, and what lies in memory: numbers for zero, or float32 where that is None."""
    scale = 1 / 64
    shape = maps.images, maps.padded_height, maps.padded_width, maps.channels
    whole = np.zeros(shape, np.float32) if zero is None else np.full(shape, zero, np.uint8)
    inner = whole[:, maps.halo : maps.halo + maps.height, maps.halo : maps.halo + maps.width]
    if zero is None:
        inner[...] = random.standard_normal(inner.shape, np.float32)
        return inner.astype(np.float64), whole
    inner[...] = random.integers(0, 256, inner.shape, np.uint8)
    return (inner.astype(np.float64) - zero) * scale, whole


def weight_of(
    random: np.random.Generator, columns: int, channels: int, window: int, zero: int | None
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The fields that a product has of a weight and a bias, and what these stand for, (K, C, S, S) and (K,)."""
    shape = (columns, channels, window, window)
    bias = random.standard_normal(columns, np.float32)
    size = np.float32((channels * window**2) ** -0.5)
    if zero is None:
        weight, scale = random.standard_normal(shape, np.float32) * size, None
    else:
        weight = random.integers(-127, 128, shape, np.int8)
        scale = random.uniform(0.5, 1.5, columns).astype(np.float32) * size / 127
    tensors = {"weight": weight, "bias": bias, "weight_scale": scale}
    known = {name: torch.from_numpy(value) for name, value in tensors.items() if value is not None}
    made = packed(Node("conv3x3", {name: Stored(name) for name in known}), known)
    fields = {"taps": made.taps, "depth": made.depth, "columns": columns, "weights": made.weights}
    if scale is None:
        around = {name: getattr(made, name).astype(np.float32) for name in ("scales", "bias")}
        return {**fields, **around, "in_floats": True}, weight.astype(np.float64), bias.astype(np.float64)
    scales = made.scales / 64
    fields |= {"scales": scales.astype(np.float32), "bias": (made.bias - made.sums * scales * zero).astype(np.float32)}
    return fields, weight * scale[:, None, None, None].astype(np.float64), bias.astype(np.float64)


def _taps(maps: Layout, rows: Rows, window: int, stride: int) -> dict[str, Any]:
    line = maps.padded_width * maps.channels
    tap = np.arange(window, dtype=np.int32) * line
    return {"rows": rows.rows, "tiles": rows.tiles, "tap": tap, "row_step": stride * maps.channels}


def norm(
    rows: int, channels: int, row_step: int | None = None, numbers: Numbers | None = None, values: bool = True
) -> Step:
    """values: whether it makes float32; numbers: those that it makes"""
    random = np.random.default_rng(0)
    step = Step("norm", rows=rows, channels=channels, row_step=row_step)
    tokens = random.standard_normal((rows, row_step or channels), np.float32) * 3 + 1
    step.put("tokens", tokens.reshape(-1)[: tokens.size - tokens.shape[1] + channels])
    _normed(step, tokens[:, :channels].astype(np.float64), random, numbers, values)
    return step


def couple(
    images: int, tokens_per_image: int, channels: int, numbers: Numbers | None = None, values: bool = True
) -> Step:
    random = np.random.default_rng(0)
    step = Step("couple", images=images, tokens_per_image=tokens_per_image, channels=channels, inner_eps=EPS)
    projected = random.standard_normal((images, tokens_per_image - 1, channels), np.float32) * 3 - 1
    tokens = random.standard_normal((images, tokens_per_image, channels), np.float32)
    step.put("projected", projected)
    step.put("tokens", tokens)
    inner = _affine(step, channels, random, "inner_")
    out = tokens.astype(np.float64)
    out[:, 0] *= 2
    out[:, 1:] += F.gelu(torch.from_numpy(inner(projected.astype(np.float64)))).numpy()
    step.makes("out_tokens", out, None, GELU_PRECISION * np.abs(out).max())
    _normed(step, out.reshape(-1, channels), random, numbers, values)
    return step


def _normed(step: Step, tokens: np.ndarray, random: np.random.Generator, numbers: Numbers | None, values: bool) -> None:
    normed = _affine(step, tokens.shape[1], random)(tokens)
    error = GELU_PRECISION * np.abs(normed).max() if step.name == "couple" else 0.0
    if values:
        step.makes("out_values", normed, None, error)
    if numbers is not None:
        step.makes("out", normed, numbers)
        step.fields["out_numbers"] = numbers


def _affine(
    step: Step, channels: int, random: np.random.Generator, prefix: str = ""
) -> Callable[[np.ndarray], np.ndarray]:
    """A norm of these weights."""
    weight, bias = random.uniform(0.5, 1.5, channels), random.standard_normal(channels)
    given = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    step.fields |= {prefix + name: value for name, value in given.items()} | {prefix + "eps": EPS}

    def normalized(rows: np.ndarray) -> np.ndarray:
        known = {name: torch.from_numpy(value.astype(np.float64)) for name, value in given.items()}
        return F.layer_norm(torch.from_numpy(rows), (channels,), **known, eps=EPS).numpy()

    return normalized


def attention(
    images: int, tokens: int, heads: int, size: int, scale: float = 0.01, numbers: Numbers | None = None
) -> Step:
    """numbers: None where it makes float32"""
    random = np.random.default_rng(0)
    step = Step("attention", images=images, tokens=tokens, heads=heads, size=size, scale=scale, out_numbers=numbers)
    qkv = random.integers(0, 256, (images, tokens, 3, heads, size), np.uint8)
    step.put("qkv", qkv)
    q, k, v = (qkv.transpose(2, 0, 3, 1, 4) - 128.0) * np.float32(scale).astype(np.float64)
    logits = q @ k.swapaxes(-1, -2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    sums = weights.sum(-1, keepdims=True)
    out = weights / sums @ v
    apart = np.abs(v[:, :, None] - out[:, :, :, None]).sum(3)  # of a key's value from the result, which its error moves
    error = WEIGHT_ERROR / MOST_WEIGHT * apart / sums
    out, error = (part.transpose(0, 2, 1, 3).reshape(images, tokens, -1) for part in (out, error))
    step.makes("out_values" if numbers is None else "out", out, numbers, error)
    return step


def picture(images: int, channels: int, height: int, width: int, padded_width: int, zero: int = 128) -> Step:
    random = np.random.default_rng(0)
    numbers = SIGNED._replace(zero=zero)
    given = random.standard_normal((images, channels, height, width), np.float32)
    shape = {"channels": channels, "height": height, "width": width, "padded_width": padded_width}
    step = Step("picture", given, **shape, numbers=numbers)
    exact = np.zeros((images, height + 6, padded_width, 4))
    exact[:, 3 : 3 + height, 3 : 3 + width, :channels] = given.transpose(0, 2, 3, 1)
    step.makes("out", exact, numbers)
    return step


def max_pool(images: int, height: int, width: int, channels: int, out_height: int, out_width: int) -> Step:
    random = np.random.default_rng(0)
    step = Step("max_pool", images=images, height=height, width=width, channels=channels)
    step.fields |= {"out_height": out_height, "out_width": out_width}
    maps = random.integers(0, 256, (images, height, width, channels), np.uint8)
    step.put("in", maps)
    pooled = F.max_pool2d(torch.from_numpy(maps).permute(0, 3, 1, 2).double(), 3, 2, 1)
    right, below = out_width - pooled.shape[3], out_height - pooled.shape[2]
    step.makes("out", F.pad(pooled, (0, right, 0, below)).permute(0, 2, 3, 1).numpy(), Numbers(1.0, 0))
    return step


def average(images: int, height: int, width: int, channels: int, stride: int, read: Numbers, written: Numbers) -> Step:
    random = np.random.default_rng(0)
    step = Step("average", images=images, height=height, width=width, channels=channels, stride=stride)
    maps = random.integers(0, 256, (images, height, width, channels), np.uint8)
    step.put("in", maps)
    step.fields |= {"in_numbers": read, "out_numbers": written}
    values = (torch.from_numpy(maps).permute(0, 3, 1, 2).double() - read.zero) * read.scale
    step.makes("out", F.avg_pool2d(values, stride).permute(0, 2, 3, 1).numpy(), written)
    return step


def mean(images: int, pixels: int, channels: int) -> Step:
    step = Step("mean", images=images, pixels=pixels, channels=channels)
    given = np.random.default_rng(0).standard_normal((images, pixels, channels), np.float32)
    step.put("in", given)
    step.makes("out", given.astype(np.float64).mean(1), None)
    return step


def quantize(values: np.ndarray, numbers: Numbers) -> Step:
    step = Step("quantize", count=values.size, numbers=numbers)
    step.put("in", values)
    step.makes("out", values.astype(np.float64), numbers)
    return step


def copy(images: int, image_step: int, count: int, step: int, size: int, behind: int) -> Step:
    """`size` bytes"""
    given = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    made = Step("copy", images=images, image_step=image_step, count=count, step=step, bytes=size, behind=behind)
    made.fields["from"] = given
    exact = np.full(behind + (images - 1) * image_step + (count - 1) * step + size, np.nan)
    for image in range(images):
        for i in range(count):
            start = behind + image * image_step + i * step
            exact[start : start + size] = given
    made.makes("out", exact, Numbers(1.0, 0))
    return made
