"""Symmetric 8-bit quantization: which numbers stand for a product's weight and for its input.

A value x is stored as round(x / scale) in INT8, or as x / scale in FP8 (E4M3), with scale = range / (largest stored
number). Weights have a scale for each output channel, activations one for all; biases stay as they are. The heads,
softmax, layer norms and residual tokens are not quantized: they feel rounding most. What attention reads, queries, keys
and values, has one scale, which engines for CPUs alone use: TensorRT-RTX takes attention apart then, and our kernels
would not gain. The probabilities that it weighs values by stay as they are everywhere: of 1 / 197, as diffuse attention
has them at 224x224, steps of 1 / 255 would keep 78 %, and of larger images' nothing.

In FP8 `calibrate` leaves out the stem, the first bottleneck and what attention reads. Its numbers have 4 significant
bits, and all that follows reads what these lose: measured on two trained models they are among the most sensitive
products. They are 3 to 5 % of all, and most of them wait for memory, not for products.

The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear, which TensorRT, OpenVINO and ONNX Runtime share.
OpenVINO's engines alone have unsigned numbers too, of half the step (engines/openvino/eight_bits.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, a_path, shown
from ..model.functional import stored
from ..model.precision import FORMATS
from ..storage.outputs import write_output
from ..storage.regular import read_regular

FORMAT = "conformer-fast quantization 1"  # of the files
LARGEST_FILE = 64 << 20  # bytes; base-p16 takes less than one MB
LEFT_OUT = {"int8": (), "fp8": ("stem", "conv_1")}  # parts of the model
ADDEND, RESULT = ".addend", ".result"  # endings of names
LARGEST_RANGE = torch.finfo(torch.float32).max
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # -128 is not used: symmetric
SMALLEST_SCALE = {  # rounded to its type, it moves the largest value by less than half a step
    torch.float32: torch.finfo(torch.float32).smallest_normal,
    torch.bfloat16: torch.finfo(torch.bfloat16).smallest_normal,
    torch.float16: 2.0**-17,  # subnormal: its normal numbers would leave a channel of 0.001 only 16 of 127 steps
}


@dataclass(frozen=True)
class Quantization:
    """How a model's products are quantized, as `conformer_fast.calibrate` measures it.

    precision:    "int8" or "fp8"
    ranges:       the magnitude that 8 bits cover of each product's input, by the product's name; a product that is not
                  there is not quantized. By `addend_of` the product, that of what a bottleneck adds; by `result_of`
                  it, of what attention reads.
    smoothing: factors between layer norms and their products, applied first (`InferenceConformer.smoothed`)
    origin:       how it was measured, as JSON values; nothing is computed from it

    Raises ArgumentError for another precision, and for a range or factor that is no finite number of float32 from 0 on;
    ArgumentTypeError for ranges or smoothing that are no mappings.
    """

    precision: str
    ranges: Mapping[str, float]
    smoothing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in tuple(FORMATS):
            raise ArgumentError(f"precision must be one of {', '.join(FORMATS)}, got {shown(repr(self.precision), 80)}")
        for name, given in (("ranges", self.ranges), ("smoothing", self.smoothing)):
            if not isinstance(given, Mapping):
                raise ArgumentTypeError(f"{name} must be a mapping from products' names, got {shown(repr(given))}")
        ranges = {name: _magnitude(f"range of {name}", value) for name, value in self.ranges.items()}
        smoothing = {
            name: tuple(_magnitude(f"smoothing of {name}", factor) for factor in factors)
            for name, factors in self.smoothing.items()
        }
        object.__setattr__(self, "ranges", ranges)
        object.__setattr__(self, "smoothing", smoothing)

    @property
    def digest(self) -> str:
        """The sha256 of everything that is computed from."""
        values = self.precision, sorted(self.ranges.items()), sorted(self.smoothing.items())
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    @property
    def dtype(self) -> torch.dtype:
        """What values are stored in."""
        return FORMATS[self.precision]

    def part(self, name: str) -> Quantization:
        """That of one of several networks, whose products' names begin with its own here."""
        prefix = f"{name}."
        ranges = {key.removeprefix(prefix): value for key, value in self.ranges.items() if key.startswith(prefix)}
        smoothing = {key.removeprefix(prefix): value for key, value in self.smoothing.items() if key.startswith(prefix)}
        return Quantization(self.precision, ranges, smoothing, self.origin)

    def scale(self, point: str, dtype: torch.dtype) -> Tensor:
        """The scale of values at `point`, a scalar in their `dtype`; 1 if they were always zero."""
        return _scale(torch.tensor(self.ranges[point], dtype=torch.float32, device="cpu"), self.dtype, dtype)

    def weight(self, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The stored numbers and their scales, one for each channel along `axis`, in the weight's own type.

        The numbers are chosen for the scales as they are stored, rounded to that type, so this rounding costs nothing.
        Of meta tensors, their shapes.
        """
        if weight.is_meta:
            # torch.empty_like would import SymPy, which takes longer than all else of loading a bundle
            numbers = torch.empty_strided(weight.shape, weight.stride(), dtype=self.dtype, device="meta")
            return numbers, weight.new_empty(weight.shape[axis])
        exact = weight.detach().float().cpu()
        others = [dimension for dimension in range(weight.ndim) if dimension != axis]
        scale = _scale(exact.abs().amax(others), self.dtype, weight.dtype)
        shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)]
        return stored(exact / scale.float().view(shape), self.dtype), scale

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Writes it as JSON, all at once, and returns the path. Raises OSError when it cannot be written, ArgumentError
        for what is no plain file."""
        path = a_path("the output", file)
        values = {"format": FORMAT, **asdict(self)}
        write_output(path, (json.dumps(values, indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Quantization:
        """What `save` wrote. Raises ArgumentError when it cannot be read, or is anything else."""
        path = a_path("the quantization", file)
        try:
            values = json.loads(read_regular(path, LARGEST_FILE))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EFBIG):
                raise ArgumentError(
                    f"{shown(path)} cannot be read ({error.strerror}); `conformer-fast calibrate -o` writes such files"
                ) from error
            raise ArgumentError(
                f"{shown(path)} is no quantization: it must be a regular file of up to {LARGEST_FILE >> 20} MB; "
                f"`conformer-fast calibrate -o` writes such files"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ArgumentError(
                f"{file} is no JSON ({shown(error)}); `conformer-fast calibrate -o` writes such files"
            ) from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ArgumentError(
                f"{file} is no quantization: its format is {shown(repr(found), 80)}, not {FORMAT!r}; "
                f"`conformer-fast calibrate -o` writes such files"
            )
        try:
            return cls(values["precision"], values["ranges"], values["smoothing"], dict(values["origin"]))
        except ArgumentError as error:
            raise ArgumentError(f"{file} is a damaged quantization: {error}; calibrate again") from error
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"{file} is a damaged quantization ({shown(repr(error))}); calibrate again") from error


def usually_stored(product: str, precision: str) -> bool:
    """Whether `calibrate` puts a product, what it adds or its result in the 8 bits of `precision`."""
    return product.partition(".")[0] not in LEFT_OUT[precision] and (
        precision == "int8" or not product.endswith(RESULT)
    )


def addend_of(product: str) -> str:
    """The name under which the residual that a product adds has its range."""
    return product + ADDEND


def result_of(product: str) -> str:
    """The name under which a product's own result has its range: queries, keys and values."""
    return product + RESULT


def product_of(name: str) -> str:
    """The product whose range, or whose addend's or result's, goes by this name."""
    return name.removesuffix(ADDEND).removesuffix(RESULT)


def _scale(largest: Tensor, stored_in: torch.dtype, dtype: torch.dtype) -> Tensor:
    scale = (largest / LARGEST[stored_in]).clamp(min=SMALLEST_SCALE[dtype])
    return torch.where(largest > 0, scale, torch.ones_like(largest)).to(dtype)


def _magnitude(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of a whole number
        number = math.inf
    if not 0 <= number <= LARGEST_RANGE:
        raise ArgumentError(f"the {shown(name)} must be a number from 0 to {LARGEST_RANGE}, got {shown(repr(value))}")
    return number + 0.0  # for -0
