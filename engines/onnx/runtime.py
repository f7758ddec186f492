"""ONNX Runtime runs an engine's graph on the CPU, node by node as it is written: a second opinion on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from conformer_fast.errors import BackendError
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.reference import Conformer

from ..base import Outcome, Runner
from . import IMAGES
from .graph import typed_graph


class ONNXRuntime(Runner):
    """ONNX Runtime on the typed graph, not optimized."""

    def run(
        self,
        reference: Conformer,
        outputs: Sequence[str],
        precision: str,
        quantization: Quantization | None,
        images: Tensor,
    ) -> Outcome:
        graph = typed_graph(reference, outputs, precision, quantization)
        return Outcome("the exported graph, not optimized", "cpu", run_graph(graph, images, outputs))


def run_graph(onnx: bytes, images: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
    """The outputs called `names` of the graph, fp32 on the CPU. images (B, in_channels, H, W).

    Raises BackendError when ONNX Runtime is not installed, or cannot run the graph: it has no bfloat16 on a CPU.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError('ONNX Runtime is not installed: pip install "conformer-fast[onnx]"') from error
    failures = onnxruntime.capi.onnxruntime_pybind11_state
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except failures.NotImplemented as error:
        reason = str(error).strip().splitlines()[-1]
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot run this graph: {reason}") from error
    found = session.run(list(names), {IMAGES: images.to("cpu", torch.float32).numpy()})
    return tuple(map(torch.from_numpy, found))
