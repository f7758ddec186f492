"""The network in 8 bits as data: which operators run, on what. It is what the engine is given and what a bundle holds.

As bytes it is one safetensors file: its tensors, and in the metadata, as JSON, its operators. Nothing in it is code.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args, get_type_hints

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from conformer_fast.errors import BundleError, first_few, shown
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.inference.ops import operation_of
from conformer_fast.inference.trace import trace
from conformer_fast.model import functional as CF

GRAPH = "graph"  # the key of the metadata
PERMUTE, TO_CHANNELS_FIRST = "permute", [0, 3, 1, 2]
COMPUTED = {"feature_map", "images", "input", "qkv", "residual", "stem_map", "token_map", "tokens", "x"}  # no weights
DTYPE = "int8"  # the only one that an argument names
LARGEST = 2**31 - 1  # of whole numbers
LENGTH = 8  # bytes at the beginning of a safetensors file, which say how many its header has


class Value(NamedTuple):
    """One of the tensors that a node returned. The images are Value(-1, 0)."""

    node: int
    output: int


class Stored(NamedTuple):
    """One of the graph's tensors."""

    name: str


IMAGES = Value(-1, 0)
Argument = Value | Stored | int | float | bool | None | list[int] | torch.dtype


class Node(NamedTuple):
    """An operator, by its name in ops.py, and all its arguments, by their names in functional.py; or "permute", with
    the arguments of torch.permute, which makes (B, K, H, W) of a map."""

    operation: str
    arguments: Mapping[str, Argument]


class _Signature(NamedTuple):
    """The types that each argument may have, and how many tensors are returned."""

    arguments: Mapping[str, frozenset[type]]
    results: int


def _signature(function: Callable[..., Any]) -> _Signature:
    hints = get_type_hints(function)
    returned = get_args(hints.pop("return"))
    arguments = {}
    for name, hint in hints.items():
        types = {*get_args(hint)} or {hint}
        tensor = {Value if name in COMPUTED else Stored} if Tensor in types else set()
        arguments[name] = frozenset(types - {Tensor} | tensor)
    return _Signature(arguments, len(returned) or 1)


SIGNATURES = {
    **{
        name: _signature(getattr(CF, name))
        for name in (
            "attention",
            "conv1x1",
            "conv3x3",
            "conv3x3_pool",
            "fcu_down",
            "fcu_up",
            "heads",
            "linear",
            "linear_norm",
            "patch_embed",
            "pool",
            "stem",
        )
    },
    PERMUTE: _Signature({"input": frozenset({Value}), "dims": frozenset({list})}, 1),
}


@dataclass(frozen=True, eq=False)
class Graph:
    """A network's operators in the order in which they run, what it returns, and its weights and scales by name."""

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: InferenceConformer) -> Graph:
        """Of a network on the CPU, in fp32 around 8 bits, without what no output needs. It shares the memory of weights
        that are contiguous."""
        traced = trace(network)
        traced.eliminate_dead_code()
        buffers = dict(network.named_buffers())
        found: dict[fx.Node, Argument] = {}
        nodes: list[Node] = []
        tensors: dict[str, Tensor] = {}
        outputs: tuple[Value, ...] = ()
        for node in traced.nodes:
            if node.op == "placeholder":
                found[node] = IMAGES
                continue
            if node.op == "get_attr":
                name = str(node.target)
                tensors[name], found[node] = buffers[name].contiguous(), Stored(name)
                continue
            given = fx.node.map_arg(node.args, found.__getitem__)
            if node.op == "output":
                outputs = tuple(given[0])
            elif operation_of(node) == "getitem":
                found[node] = given[0]._replace(output=given[1])
            else:
                found[node] = Value(len(nodes), 0)
                nodes.append(_node(operation_of(node), given, fx.node.map_arg(node.kwargs, found.__getitem__)))
        return cls(tuple(nodes), outputs, tensors)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        nodes = [
            [node.operation, {name: _plain(argument) for name, argument in node.arguments.items()}]
            for node in self.nodes
        ]
        graph = json.dumps({"nodes": nodes, "outputs": self.outputs})
        return safetensors.torch.save(dict(self.tensors), {GRAPH: graph})

    @classmethod
    def from_bytes(cls, content: bytes) -> Graph:
        """What `to_bytes` wrote. Raises BundleError for anything else: each operator must be known, have its own
        arguments, and read what earlier ones return."""
        try:
            tensors = safetensors.torch.load(content)
            header = json.loads(content[LENGTH : LENGTH + int.from_bytes(content[:LENGTH], "little")])
            given = json.loads(header["__metadata__"][GRAPH])
            nodes = tuple(Node(operation, _arguments(arguments)) for operation, arguments in given["nodes"])
            graph = cls(nodes, tuple(Value(*output) for output in given["outputs"]), tensors)
            graph._check()
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = shown(repr(error) if isinstance(error, KeyError) else error)
            raise BundleError(f"the file is no network in 8 bits: {why}") from error
        return graph

    def _check(self) -> None:
        """Raises ValueError for what cannot be run."""
        read: set[str] = set()
        for index, (operation, arguments) in enumerate(self.nodes):
            if operation not in SIGNATURES:
                raise ValueError(f"node {index} is {operation!r}, which is no operation")
            expected = SIGNATURES[operation].arguments
            if arguments.keys() != expected.keys():
                wrong = first_few(sorted(arguments.keys() ^ expected.keys()))
                raise ValueError(f"node {index}, {operation}, has arguments too many or too few: {wrong}")
            for name, argument in arguments.items():
                if type(argument) not in expected[name] or not _is_sound(name, argument):
                    raise ValueError(f"node {index}, {operation}, cannot have the {name} {argument!r}")
                if isinstance(argument, Value):
                    self._check_value(argument, index)
                elif isinstance(argument, Stored):
                    read.add(argument.name)
        if read != self.tensors.keys():
            wrong = first_few(sorted(read ^ self.tensors.keys()))
            raise ValueError(f"it has other tensors than it reads: {wrong}")
        for name, tensor in self.tensors.items():
            if tensor.dtype not in (torch.int8, torch.float32):
                raise ValueError(f"its tensor {name} is {tensor.dtype}")
        if not self.outputs or IMAGES in self.outputs:
            raise ValueError("it returns nothing, or the images")
        for value in self.outputs:
            self._check_value(value, len(self.nodes))

    def check_like(self, other: Graph) -> None:
        """Raises BundleError unless it runs the same operators on tensors of the same shapes and types, and has numbers
        that can be computed with."""
        if self.nodes != other.nodes or self.outputs != other.outputs:
            raise BundleError("its operators are not those of its configuration")
        for name, expected in other.tensors.items():
            found = self.tensors[name]
            if (found.shape, found.dtype) != (expected.shape, expected.dtype):
                raise BundleError(
                    f"its tensor {name} is {found.dtype} of shape {tuple(found.shape)}, not {expected.dtype} of "
                    f"{tuple(expected.shape)}"
                )
            if not found.isfinite().all() or (name.endswith("scale") and not (found > 0).all()):
                raise BundleError(f"its tensor {name} has values that are no numbers, or scales that are not positive")

    def _check_value(self, value: Value, before: int) -> None:
        """Raises ValueError unless it is there before this node runs."""
        node, output = value
        whole = type(node) is int and type(output) is int
        if whole and value != IMAGES:
            whole = 0 <= node < before and 0 <= output < SIGNATURES[self.nodes[node].operation].results
        if not whole:
            raise ValueError(f"{value} is read by node {before} of {len(self.nodes)}, and none before returns it")


def _node(operation: str, positional: tuple[Any, ...], by_name: Mapping[str, Any]) -> Node:
    """All arguments of a traced call, by name."""
    if operation == PERMUTE:
        feature_map, *dims = positional
        return Node(PERMUTE, {"input": feature_map, "dims": dims})
    call = inspect.signature(getattr(CF, operation)).bind(*positional, **by_name)
    call.apply_defaults()
    return Node(operation, call.arguments)


def _plain(argument: Argument) -> Any:
    """As JSON has it; what that does not know is an object of one entry."""
    if isinstance(argument, Value):
        return {"value": argument}
    if isinstance(argument, Stored):
        return {"stored": argument.name}
    if isinstance(argument, torch.dtype):
        assert argument == torch.int8
        return {"dtype": DTYPE}
    return argument


def _arguments(plain: Mapping[str, Any]) -> dict[str, Argument]:
    """What `_plain` was given."""
    return {name: _argument(value) for name, value in plain.items()}


def _argument(plain: Any) -> Argument:
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    if kind == "value":
        return Value(*value)
    if kind == "stored" and isinstance(value, str):
        return Stored(value)
    if (kind, value) != ("dtype", DTYPE):
        raise ValueError(f"{plain} is no argument")
    return torch.int8


def _is_sound(name: str, argument: Argument) -> bool:
    """Whether an argument of the right type has a value that it may have."""
    if isinstance(argument, Value):
        return (name == "images") == (argument == IMAGES)
    if isinstance(argument, list):
        return argument == TO_CHANNELS_FIRST
    if type(argument) is int:
        return 1 <= argument <= LARGEST
    return not isinstance(argument, float) or math.isfinite(argument)
