"""export(): the inference network as a typed ONNX graph, for a runtime of the user's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..calibration.calibrate import Images
from ..calibration.resolve import resolve
from ..checkpoints.adopt import Model, adopt
from ..engines.onnx.graph import typed_graph
from ..errors import a_path, one_of
from ..inference.quantization import Quantization
from ..model.names import PRECISIONS
from ..model.outputs import check_outputs, names_of
from ..storage.outputs import check_output, write_output


def export(
    model: Model,
    file: str | os.PathLike[str],
    *,
    precision: str = "fp16",
    outputs: Sequence[str] | None = None,
    quantization: Quantization | Images | None = None,
) -> Path:
    """Writes the graph that engines are built from, for any batch and size, and returns the file.

    model:        what `compile` takes. It is not changed.
    file:         it is replaced if it is there, which a device or the model's own file is not
    precision:    "fp16", "bf16", "fp32", or "int8" or "fp8" for products of stem and branches, with fp16 around them
    outputs:      names of InferenceConformer.outputs, such as ["logits"]; default: what the model returns
    quantization: for "int8" and "fp8", what `calibrate` returned, or the images that it is to measure: batches (B,
                  in_channels, H, W), normalized, or a folder's path

    Its input is "images" (B, in_channels, H, W), normalized; that and all outputs are fp32.

    Raises ArgumentError for an unknown precision or output, an 8-bit precision without a quantization or one without
    the other, a model in training mode, and a file that is not to be replaced; CheckpointError for a model that is no
    Conformer; BackendError where onnx is not installed; OSError, before any work, when there is no such folder, or when
    the file cannot be written.
    """
    path = a_path("the output", file)
    one_of("precision", precision, PRECISIONS)
    check_output(path, [model] if isinstance(model, str | os.PathLike) else [])
    source = adopt(model)
    names = source.outputs if outputs is None else check_outputs(outputs, names_of(source.reference))
    found, _ = resolve(source.reference, precision, quantization)
    write_output(path, typed_graph(source.reference, names, precision, found))
    return path
