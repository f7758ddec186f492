"""The typed ONNX graph of a model, which TensorRT builds from and ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from conformer_fast.errors import BackendError
from conformer_fast.inference.lower import Lowered, lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.precision import around


def typed_graph(
    reference: Lowered, outputs: Sequence[str], precision: str, quantization: Quantization | None = None
) -> bytes:
    """It says what each operation is computed in: `precision`, or in 8 bits fp16 around the quantized products.

    outputs: names of the network's outputs

    Raises BackendError if onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise BackendError('the graph is written with onnx, which is not installed: pip install "conformer-fast[onnx]"')
    from .export import onnx_from_model

    return onnx_from_model(lower(reference, outputs, around(precision), quantization)).SerializeToString()
