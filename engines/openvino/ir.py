"""A network in OpenVINO's own form, IR: its operations as XML, and its weights beside that.

Its engines hold no weights: OpenVINO takes them from there when it loads one. So they are stored once for all sizes of
image, and in the type that they are used in.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conformer_fast.errors import ConformerFastError, EngineError, shown
from conformer_fast.model.precision import FORMATS

from ..cache import cached
from .eight_bits import use_all_numbers
from .maps_in_8_bits import add_in_convolutions, average_in_8_bits
from .runtime import core, ov

PRODUCTS = {"Convolution", "GroupConvolution", "MatMul"}


@dataclass(frozen=True)
class IR:
    """onnx: sha256 of the graph that it was made from; sha256: its own."""

    xml: bytes
    weights: bytes | memoryview
    onnx: str
    sha256: str


def ir_sha256(onnx_sha256: str, weights_sha256: str) -> str:
    """An IR's own: of the graph that it was made from and of its weights. The XML differs in names that OpenVINO
    counts."""
    return hashlib.sha256(f"{onnx_sha256} {weights_sha256}".encode()).hexdigest()


def cached_ir(graph: Callable[[], bytes], sha256: str, precision: str) -> IR:
    """The IR of an ONNX graph, from the cache, else made of what `graph` returns. sha256: the graph's.

    Raises ConformerFastError if `graph` returns another one.
    """
    fields = {
        "backend": "openvino",
        "holds": "weights",
        "onnx": sha256,
        "precision": precision,
        "openvino": ov.__version__,
        **({"numbers": "all of what is never negative", "maps": "in 8 bits"} if precision in FORMATS else {}),
    }

    def build() -> bytes:
        content = graph()
        check(content, sha256)
        return _packed(ir_of(content, precision))

    content = cached(fields, build)
    try:
        return _unpacked(content)
    except (ValueError, KeyError, TypeError):  # another version has kept something else under the same key
        return _unpacked(cached(fields, build, refused=content))


def check(graph: bytes, sha256: str) -> None:
    """Raises ConformerFastError if it is another graph than the one with this sha256."""
    found = hashlib.sha256(graph).hexdigest()
    if found != sha256:
        raise ConformerFastError(
            f"the reference was changed after it was compiled: its graph has the sha256 {found[:12]}, that of the "
            f"engines so far has {sha256[:12]}; compile the changed model"
        )


def ir_of(graph: bytes, precision: str) -> IR:
    """An ONNX graph as IR, for engines that compute in this precision."""
    model = core().read_model(graph)
    if precision == "bf16":
        _store_in_bf16(model)
    if precision in FORMATS:
        use_all_numbers(model)
        add_in_convolutions(model)
        average_in_8_bits(model)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.xml")
            ov.save_model(model, file, compress_to_fp16=precision == "fp16")
            xml, weights = file.read_bytes(), file.with_suffix(".bin").read_bytes()
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"OpenVINO could not write {len(graph) / 1e6:.0f} MB to the temporary folder ({shown(error)}); make room "
            f"there, or set TMPDIR to another folder"
        ) from error
    onnx_sha256, weights_sha256 = (hashlib.sha256(part).hexdigest() for part in (graph, weights))
    return IR(xml, weights, onnx_sha256, ir_sha256(onnx_sha256, weights_sha256))


def _store_in_bf16(model: ov.Model) -> None:
    """The weights of its products, which round them to that."""
    for node in model.get_ops():
        if node.get_type_name() in PRODUCTS:
            constant = node.input_value(1).get_node()
            if constant.get_type_name() == "Constant" and constant.get_element_type() == ov.Type.f32:
                narrow = ov.opset13.convert(_in_bf16(constant.data), np.float32)
                constant.output(0).replace(narrow.output(0))


def _in_bf16(values: np.ndarray) -> ov.Node:
    """A constant, rounded to the nearest, of two to the even one. NumPy has no such type."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    tensor = ov.Tensor(ov.Type.bf16, ov.Shape(values.shape))
    tensor.data.view(np.uint16)[...] = rounded
    return ov.opset13.constant(tensor)


def _packed(ir: IR) -> bytes:
    head = {"onnx": ir.onnx, "sha256": ir.sha256, "xml": len(ir.xml)}
    return b"".join([json.dumps(head).encode(), b"\n", ir.xml, ir.weights])


def _unpacked(content: bytes) -> IR:
    head, parts = json.loads(content[: content.index(b"\n")]), memoryview(content)[content.index(b"\n") + 1 :]
    return IR(bytes(parts[: head["xml"]]), parts[head["xml"] :], head["onnx"], head["sha256"])
