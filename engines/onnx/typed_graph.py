"""An ONNX graph under construction in which every value has an element type, and every conversion is a node.

Precision lives in the graph: a strongly typed engine (TensorRT 11, TensorRT-RTX) computes each node in its inputs' type
and knows no other setting. Constants keep the type of the tensor they are made of; a node's result has its first
input's type; `cast` is the only way from one type to another, `quantized` the only way through 8 bits and back.

It is our own because torch.onnx would need onnxscript and a translation of each of our operators too; here a graph has
exactly the nodes and types that were asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from conformer_fast.errors import ArgumentTypeError

OPSET = 20  # LayerNormalization (17), FP8 Q/DQ (19) and Gelu (20); read by TensorRT 10.12 and OpenVINO 2025.4
OPSET_BF16 = 22  # the first whose convolutions and pools take bfloat16
IR_VERSION = 10
ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int8: TensorProto.INT8,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
}


class TypedGraph:
    """Collects nodes and initializers. Values go by their names; an input may also be a tensor or a list of integers,
    which become constants.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._types: dict[str, torch.dtype] = {}
        self._made: dict[tuple[str, Any], str] = {}  # casts and Q/DQ pairs of a value are made once

    def input(self, name: str, dtype: torch.dtype) -> str:
        """Declares a value that the graph is given."""
        self._types[name] = dtype
        return name

    def type_of(self, value: str) -> torch.dtype:
        return self._types[value]

    def node(
        self,
        op: str,
        inputs: list[str | Tensor | list[int]],
        output: str | None = None,
        dtype: torch.dtype | None = None,
        **attributes: Any,
    ) -> str:
        """Adds a node and returns the name of its output, which has the first input's type unless `dtype` is given.

        Raises ArgumentTypeError when it would mix floating point types, which ONNX does not.
        """
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self._check_types(op, names)
        output = output or f"{op}_{len(self._nodes)}"
        self._types[output] = dtype or self._types[names[0]]
        self._nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Equal parts of `value` along `axis`."""
        outputs = [f"Split_{len(self._nodes)}_{part}" for part in range(parts)]
        self._types.update(dict.fromkeys(outputs, self._types[value]))
        self._nodes.append(helper.make_node("Split", [value], outputs, name=outputs[0], axis=axis, num_outputs=parts))
        return outputs

    def shape(self, value: str, **attributes: Any) -> str:
        """The sizes of `value`, integers; `attributes` as ONNX's Shape has them (start, end)."""
        return self.node("Shape", [value], dtype=torch.int64, **attributes)

    def cast(self, value: str, dtype: torch.dtype) -> str:
        """`value` in `dtype`; itself if it is that already."""
        if self._types[value] == dtype:
            return value
        key = value, dtype
        if key not in self._made:
            self._made[key] = self.node("Cast", [value], dtype=dtype, to=_element_type(dtype))
        return self._made[key]

    def add(self, value: str, other: str) -> str:
        """value + other in the type of `other`: a product's result goes to what it is added to."""
        return self.node("Add", [self.cast(value, self._types[other]), other])

    def quantized(self, value: str, scale: Tensor | None, dtype: torch.dtype | None) -> str:
        """`value` rounded to numbers of `dtype`, 8 bits, at this scale; itself if either is None.

        Users of a value at the same scale share one pair. An engine computes a product of two such values in 8 bits,
        and lets whatever produces them write 8 bits.
        """
        if scale is None or dtype is None:
            return value
        key = value, (scale.item(), dtype)
        if key not in self._made:
            step = self.constant(scale.to(self._types[value]))
            zero = self.constant(torch.zeros((), dtype=dtype, device="cpu"))
            stored = self.node("QuantizeLinear", [value, step, zero], dtype=dtype)
            self._made[key] = self.node("DequantizeLinear", [stored, step, zero], dtype=self._types[value])
        return self._made[key]

    def weight(self, weight: Tensor, scale: Tensor | None, axis: int = 0) -> str:
        """A product's weight; of one in 8 bits what its numbers stand for, at the scale of each of its output channels,
        which lie along `axis`."""
        if scale is None:
            return self.constant(weight)
        zeros = torch.zeros(scale.shape, dtype=weight.dtype, device="cpu")
        return self.node("DequantizeLinear", [weight, scale, zeros], dtype=scale.dtype, axis=axis)

    def constant(self, value: Tensor | list[int]) -> str:
        """Adds an initializer, of the tensor's type or int64, and returns its name."""
        if isinstance(value, list):
            value = torch.tensor(value, dtype=torch.int64, device="cpu")
        tensor = value.detach().cpu()
        name = f"constant_{len(self._initializers)}"
        content = tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()
        self._types[name] = tensor.dtype
        self._initializers.append(
            TensorProto(name=name, dims=tensor.shape, data_type=_element_type(tensor.dtype), raw_data=content)
        )
        return name

    def model(self, inputs: dict[str, list], outputs: dict[str, list]) -> onnx.ModelProto:
        """The ONNX model with these inputs and outputs: the dimensions of each, numbers or names."""
        graph = helper.make_graph(
            self._nodes, "conformer", self._described(inputs), self._described(outputs), self._initializers
        )
        version = OPSET_BF16 if torch.bfloat16 in self._types.values() else OPSET
        opset = helper.make_opsetid("", version)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="conformer_fast")

    def _described(self, values: dict[str, list]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, _element_type(self._types[name]), shape)
            for name, shape in values.items()
        ]

    def _check_types(self, op: str, names: list[str]) -> None:
        if op in ("QuantizeLinear", "DequantizeLinear", "Resize"):  # their scales have a type of their own
            return
        mixed = {self._types[name] for name in names if name and self._types[name].is_floating_point}
        if len(mixed) > 1:
            raise ArgumentTypeError(f"{op} of {', '.join(names)} would mix {_names(mixed)}; cast first")


def _element_type(dtype: torch.dtype) -> int:
    """ONNX's number for it. Raises ArgumentTypeError for a type that no engine has."""
    if dtype not in ELEMENT_TYPES:
        raise ArgumentTypeError(f"engines take no {dtype}; give the model in one of {_names(ELEMENT_TYPES)}")
    return ELEMENT_TYPES[dtype]


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes)))
