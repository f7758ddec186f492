"""The implementations that benchmarks compare: each builds a callable, images -> the sum of both heads' logits.

Peers are set up as their documentation says. "unfused" is the reference model as their own converters read it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

import conformer_fast as cf
from conformer_fast.engines.openvino.engine import images_at_once
from conformer_fast.engines.openvino.runtime import core, ov, without_telemetry

Run = Callable[[Tensor], Tensor]
OPENVINO = {"fp32": "f32", "bf16": "bf16"}
THROUGHPUT = {"PERFORMANCE_HINT": "THROUGHPUT"}


@dataclass(frozen=True)
class Peer:
    """precision is what it computes in; build(model, images) sets it up for a model and a batch of that shape."""

    precision: str
    build: Callable[[cf.Conformer, Tensor], Run]


def _eager(dtype: torch.dtype) -> Callable[[cf.Conformer, Tensor], Run]:
    def build(model: cf.Conformer, images: Tensor) -> Run:
        eager = copy.deepcopy(model).to(dtype, memory_format=torch.channels_last)
        return lambda images: eager(images.to(dtype, memory_format=torch.channels_last)).logits

    return build


def _torch_compile(dtype: torch.dtype) -> Callable[[cf.Conformer, Tensor], Run]:
    def build(model: cf.Conformer, images: Tensor) -> Run:
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model).to(dtype, memory_format=torch.channels_last))

        def run(images: Tensor) -> Tensor:
            return compiled(images.to(dtype, memory_format=torch.channels_last)).logits

        run(images)
        return run

    return build


def _onnxruntime(model: cf.Conformer, images: Tensor) -> Run:
    import onnxruntime

    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    serialized = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(sum(session.run(None, {name: images.numpy()})))


def _openvino(precision: str) -> Callable[[cf.Conformer, Tensor], Run]:
    """One engine for the batch, with the defaults of `compile_model`: all cores on one request."""

    def build(model: cf.Conformer, images: Tensor) -> Run:
        return _one_request(_openvino_model(_unfused(model), images, precision, {}))

    return build


def _openvino_streams(precision: str) -> Callable[[cf.Conformer, Tensor], Run]:
    """The batch as single images through OpenVINO's throughput mode."""

    def build(model: cf.Conformer, images: Tensor) -> Run:
        return _queue(_openvino_model(_unfused(model), images[:1], precision, THROUGHPUT))

    return build


def nncf_peers(model: cf.Conformer, images: Tensor, calibration: Tensor, precision: str) -> dict[str, Run]:
    """OpenVINO on the unfused model as NNCF quantizes it with these images, with its defaults for transformers: all
    cores on one request, and its throughput mode with as many images a request as ours takes. The rest is computed in
    `precision`."""
    with without_telemetry():
        import nncf

    nncf.set_log_level("ERROR")
    quantized = nncf.quantize(
        _unfused(model),
        nncf.Dataset([image[None].numpy() for image in calibration]),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    at_once = images_at_once(len(images), torch.get_num_threads(), "int8")
    return {
        "OpenVINO int8 (NNCF)": _one_request(_openvino_model(quantized, images, precision, {})),
        "OpenVINO int8 (NNCF), streams": _queue(_openvino_model(quantized, images[:at_once], precision, THROUGHPUT)),
    }


def _one_request(compiled: ov.CompiledModel) -> Run:
    request = compiled.create_infer_request()

    def run(images: Tensor) -> Tensor:
        request.infer([ov.Tensor(images.numpy(), shared_memory=True)])
        return torch.from_numpy(request.get_output_tensor(0).data + request.get_output_tensor(1).data)

    return run


def _queue(compiled: ov.CompiledModel) -> Run:
    queue = ov.AsyncInferQueue(compiled)
    logits: dict[int, np.ndarray] = {}
    at_once = compiled.input(0).shape[0]

    def keep(request: ov.InferRequest, index: int) -> None:
        logits[index] = request.get_output_tensor(0).data + request.get_output_tensor(1).data

    queue.set_callback(keep)

    def run(images: Tensor) -> Tensor:
        parts = images.split(at_once)
        for index, part in enumerate(parts):
            queue.start_async([ov.Tensor(part.numpy(), shared_memory=True)], index)
        queue.wait_all()
        return torch.from_numpy(np.concatenate([logits[index] for index in range(len(parts))]))

    return run


def _openvino_model(model: ov.Model, images: Tensor, precision: str, options: dict[str, str]) -> ov.CompiledModel:
    model = model.clone()
    model.reshape(list(images.shape))
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": OPENVINO[precision], **options})


@lru_cache(maxsize=1)
def _unfused(model: cf.Conformer) -> ov.Model:
    return ov.convert_model(model, example_input=torch.zeros(1, model.config.in_channels, 224, 224))


def _ours(precision: str) -> Callable[[cf.Conformer, Tensor], Run]:
    def build(model: cf.Conformer, images: Tensor) -> Run:
        fast = cf.compile(model, backend="openvino", precision=precision)
        return lambda images: fast(images).logits

    return build


PEERS = {
    "eager fp32": Peer("fp32", _eager(torch.float32)),
    "eager bf16": Peer("bf16", _eager(torch.bfloat16)),
    "torch.compile fp32": Peer("fp32", _torch_compile(torch.float32)),
    "torch.compile bf16": Peer("bf16", _torch_compile(torch.bfloat16)),
    "ONNX Runtime fp32": Peer("fp32", _onnxruntime),
    "OpenVINO unfused fp32": Peer("fp32", _openvino("fp32")),
    "OpenVINO unfused bf16": Peer("bf16", _openvino("bf16")),
    "OpenVINO unfused fp32, streams": Peer("fp32", _openvino_streams("fp32")),
    "OpenVINO unfused bf16, streams": Peer("bf16", _openvino_streams("bf16")),
    "conformer_fast fp32": Peer("fp32", _ours("fp32")),
    "conformer_fast bf16": Peer("bf16", _ours("bf16")),
}


def rival_of(name: str) -> str:
    """The peer that every other is timed against, turn by turn: OpenVINO on the unfused model in the same precision."""
    return f"OpenVINO unfused {PEERS[name].precision}"
