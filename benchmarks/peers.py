"""The implementations that benchmarks compare: each builds a callable, images -> the sum of both heads' logits.

Peers are set up as their documentation says. "unfused" is the reference model as their own converters read it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

import conformer_fast as cf
from conformer_fast.engines.native.engine import NativeEngine
from conformer_fast.engines.native.graph import Graph
from conformer_fast.engines.openvino.device import instruction_limit
from conformer_fast.engines.openvino.engine import IMAGES_AT_ONCE, images_at_once
from conformer_fast.engines.openvino.runtime import core, ov, without_telemetry
from conformer_fast.inference.lower import lower

Run = Callable[[Tensor], Tensor]
OPENVINO = {"fp32": "f32", "bf16": "bf16"}
THROUGHPUT = {"PERFORMANCE_HINT": "THROUGHPUT"}
NOISE_IMAGES = 16
NATIVE = "conformer_fast native int8"


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


def _onnx(model: cf.Conformer, images: Tensor) -> bytes:
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _onnxruntime_session(graph: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(sum(session.run(None, {name: images.numpy()})))


def _onnxruntime(model: cf.Conformer, images: Tensor) -> Run:
    return _onnxruntime_session(_onnx(model, images))


def _openvino(precision: str) -> Callable[[cf.Conformer, Tensor], Run]:
    """One engine for the batch, with the defaults of `compile_model`: all cores on one request."""

    def build(model: cf.Conformer, images: Tensor) -> Run:
        return _one_request(_openvino_model(_unfused(model), images, precision, {}))

    return build


def _openvino_streams(precision: str) -> Callable[[cf.Conformer, Tensor], Run]:
    """OpenVINO's throughput mode, with as many images a request as ours takes."""

    def build(model: cf.Conformer, images: Tensor) -> Run:
        return _queue(_openvino_model(_unfused(model), images[: _at_once(images)], precision, THROUGHPUT))

    return build


def _nncf(model: cf.Conformer, calibration: Tensor) -> ov.Model:
    """The unfused model as NNCF quantizes it with its defaults for transformers."""
    with without_telemetry():
        import nncf

    nncf.set_log_level("ERROR")
    return nncf.quantize(
        _unfused(model),
        nncf.Dataset([image[None].numpy() for image in calibration]),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
    )


def _openvino_nncf(model: cf.Conformer, images: Tensor, calibration: Tensor) -> Run:
    """All cores on one request."""
    return _one_request(_openvino_model(_nncf(model, calibration), images, fastest_rest(), {}))


def _openvino_nncf_streams(model: cf.Conformer, images: Tensor, calibration: Tensor) -> Run:
    """As `_openvino_streams`."""
    return _queue(_openvino_model(_nncf(model, calibration), images[: _at_once(images)], fastest_rest(), THROUGHPUT))


def _onnxruntime_int8(model: cf.Conformer, images: Tensor, calibration: Tensor) -> Run:
    """As its documentation quantizes for x86: Q/DQ pairs, unsigned activations, a scale a channel of weights."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._left = iter(
                [{name: part.numpy()} for part in calibration.split(len(images)) if len(part) == len(images)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder:
        exported, prepared, stored = (Path(folder, f"{name}.onnx") for name in ("exported", "prepared", "stored"))
        exported.write_bytes(_onnx(model, images))
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)  # which would write into the current folder
        name = onnx.load(prepared, load_external_data=False).graph.input[0].name
        options = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
        quantization.quantize_static(prepared, stored, Reader(name), per_channel=True, **options)
        return _onnxruntime_session(stored.read_bytes())


def _ours_int8(model: cf.Conformer, images: Tensor, calibration: Tensor) -> Run:
    quantization = cf.calibrate(model, [calibration], precision="int8")
    fast = cf.compile(model, backend="openvino", precision="int8", quantization=quantization)
    return lambda images: fast(images).logits


def _ours_native_int8(model: cf.Conformer, images: Tensor, calibration: Tensor) -> Run:
    """Where OpenVINO's products are limited to older instructions, ours are too."""
    quantization = cf.calibrate(model, [calibration], precision="int8")
    graph = Graph.of(lower(model, quantization=quantization, attended=True))
    engine = NativeEngine(lambda: graph, instructions="avx512" if instruction_limit() else "")
    return lambda images: sum(engine(images), torch.zeros(()))


def fastest_rest() -> str:
    """What OpenVINO's engines compute in where they are not in 8 bits: as measured on this CPU."""
    return cf.OpenVINO().fastest()[0]


def _one_request(compiled: ov.CompiledModel) -> Run:
    request = compiled.create_infer_request()

    def run(images: Tensor) -> Tensor:
        request.infer([ov.Tensor(images.numpy(), shared_memory=True)])
        return torch.from_numpy(request.get_output_tensor(0).data + request.get_output_tensor(1).data)

    return run


def _at_once(images: Tensor) -> int:
    return images_at_once(len(images), torch.get_num_threads(), IMAGES_AT_ONCE)


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


# Each is calibrated with the images it is given last.
IN_8_BITS: dict[str, Callable[[cf.Conformer, Tensor, Tensor], Run]] = {
    **({} if cf.Native().missing() else {NATIVE: _ours_native_int8}),
    "conformer_fast int8": _ours_int8,
    "OpenVINO int8 (NNCF)": _openvino_nncf,
    "OpenVINO int8 (NNCF), streams": _openvino_nncf_streams,
    "ONNX Runtime int8": _onnxruntime_int8,
}


def _on_noise(
    build: Callable[[cf.Conformer, Tensor, Tensor], Run],
) -> Callable[[cf.Conformer, Tensor], Run]:
    """Calibrated with noise, of which the images are too."""

    return lambda model, images: build(model, images, noise(images.shape[1:]))


def noise(shape: Sequence[int]) -> Tensor:
    """Images to calibrate with where images are noise too: (NOISE_IMAGES, *shape)."""
    return torch.randn(NOISE_IMAGES, *shape, generator=torch.Generator().manual_seed(1))


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
    **{name: Peer("int8", _on_noise(build)) for name, build in IN_8_BITS.items()},
}


def rival_of(name: str) -> str:
    """The peer that every other one of 16 and 32 bits is timed against, turn by turn: OpenVINO on the unfused model in
    the same precision."""
    return f"OpenVINO unfused {PEERS[name].precision}"
