"""The CPU engine: the inference graph compiled by OpenVINO.

One engine is built for one image size and runs one image; a batch is spread over streams that each run whole images on
their share of the cores. That costs no synchronisation inside an image and keeps its maps in the caches, so it is
faster than one wide batch, and an image's result does not depend on its neighbours.

The graph should write the tokens' projections as 1x1 convolutions. On channels-last maps these are the same products,
and OpenVINO runs them faster: its matrix product divides the 197 rows of a 224x224 image badly, its convolution not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import openvino as ov
import torch
from torch import Tensor

from .cache import cached, key_of

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # ours -> OpenVINO's name of what it computes in but for 8-bit products
SIZES_KEPT = 4  # engines in memory, of one size and stream count each; then the least recently used is dropped


@cache
def core() -> ov.Core:
    """OpenVINO's entry point, one for the process and never closed.

    Where the CPU has AMX, it gives the thread that first uses it a stack for signals, and takes that away when it is
    closed: the next signal, Ctrl-C say, would then end the process with a segmentation fault.
    """
    return ov.Core()


def native_precisions() -> tuple[str, ...]:
    """What this CPU computes in hardware, the fastest last."""
    native = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in native else ("fp32",)


def describe_cpu() -> dict[str, Any]:
    """What decides whether a built engine may run here: CPU, instruction sets and OpenVINO's version."""
    return {
        "cpu": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "openvino": ov.__version__,
    }


def engine_file(onnx_sha256: str, precision: str, height: int, width: int) -> str:
    """The name in a bundle of the engine that this CPU loads for images of one size."""
    fields = {"onnx": onnx_sha256, "precision": precision, **describe_cpu(), "height": height, "width": width}
    return f"{height}x{width}-{key_of(fields)}.engine"


def streams_for(batch: int, threads: int) -> int:
    """How many images to run at once: one a thread, or for a smaller batch the power of two that it fills."""
    return threads if batch >= threads else 1 << (batch.bit_length() - 1)


class OpenVINOEngine:
    """images (B, in_channels, H, W), fp32 on the CPU -> one fp32 tensor (B, ...) per output. Callable from any thread.

    make_onnx:  returns the graph's bytes; called only when an engine is not in the cache
    identity:   what the graph was made from, as JSON values: part of the cache key
    precision:  "fp32" or "bf16"; "int8" for a graph that says by Q/DQ pairs what is in 8 bits
    threads:    cores to use; default: as many as PyTorch uses
    stored:     returns the engine for images of height x width if it is at hand; asked before the cache
    """

    def __init__(
        self,
        make_onnx: Callable[[], bytes],
        identity: Mapping[str, Any],
        precision: str,
        threads: int | None = None,
        stored: Callable[[int, int], bytes | None] = lambda height, width: None,
    ) -> None:
        self._make_onnx, self._precision, self._stored = make_onnx, precision, stored
        self._identity = {**identity, "precision": precision, **describe_cpu()}
        self._threads = threads or torch.get_num_threads()
        self._built: OrderedDict[tuple[int, int, int], _SizedEngine] = OrderedDict()
        self._building: dict[tuple[int, int, int], threading.Lock] = {}
        self._lock = threading.Lock()  # of both tables; held for look-ups only

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(torch.float32).resolve_neg().contiguous()
        B, _, H, W = images.shape
        outputs: list[Tensor] = []
        done = 0
        while done < B:  # a batch that does not fill the streams ends in smaller, wider rounds
            streams = streams_for(B - done, self._threads)
            engine = self._sized(H, W, streams)
            outputs = outputs or [_empty(B, *shape) for shape in engine.output_shapes]
            whole = done + (B - done) // streams * streams
            engine.run(images[done:whole], [output[done:whole] for output in outputs])
            done = whole
        return tuple(outputs)

    def _sized(self, height: int, width: int, streams: int) -> _SizedEngine:
        key = height, width, streams
        with self._lock:
            if key in self._built:
                self._built.move_to_end(key)
                return self._built[key]
            building = self._building.setdefault(key, threading.Lock())
        with building:  # one thread builds, the others that want the same engine wait for it
            with self._lock:
                if key in self._built:
                    return self._built[key]
            engine = self._load(height, width, streams)
            with self._lock:
                self._built[key] = engine
                if len(self._built) > SIZES_KEPT:
                    self._built.popitem(last=False)
        return engine

    def engines(self, height: int, width: int) -> dict[tuple[int, int], bytes]:
        """The bytes of the engine of each image size that is in memory; if none is, of this one."""
        with self._lock:
            sizes = {key[:2] for key in self._built}
        return {size: self._bytes(*size, self._options(1)) for size in sizes or {(height, width)}}

    def _load(self, height: int, width: int, streams: int) -> _SizedEngine:
        options = self._options(streams)
        return _SizedEngine(core().import_model(self._bytes(height, width, options), "CPU", options), streams)

    def _options(self, streams: int) -> dict[str, str]:
        return {
            "INFERENCE_PRECISION_HINT": PRECISIONS.get(self._precision, PRECISIONS[native_precisions()[-1]]),
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(self._threads),
        }

    def _bytes(self, height: int, width: int, options: dict[str, str]) -> bytes:
        def build() -> bytes:
            model = core().read_model(self._make_onnx())
            model.reshape([1, model.input(0).partial_shape[1].get_length(), height, width])
            return core().compile_model(model, "CPU", options).export_model().getvalue()

        stored = self._stored(height, width)
        return cached({**self._identity, "height": height, "width": width}, build) if stored is None else stored


class _SizedEngine:
    """A compiled engine of one image size with a pool of its requests."""

    def __init__(self, compiled: ov.CompiledModel, streams: int) -> None:
        self._compiled, self._streams = compiled, streams
        self.output_shapes = [tuple(output.shape)[1:] for output in compiled.outputs]
        self._idle: list[ov.InferRequest] = []
        self._lock = threading.Lock()

    def run(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        """Fills `outputs`, one row an image, keeping `streams` images in flight."""
        requests = self._take()
        with ExitStack() as running:  # waits for all, also after an error: the tensors must outlive every run
            for request in requests:
                running.callback(request.wait)
            for index in range(len(images)):
                request = requests[index % self._streams]
                request.wait()
                row = slice(index, index + 1)
                request.set_input_tensor(_shared(images[row]))
                for port, output in enumerate(outputs):
                    request.set_output_tensor(port, _shared(output[row]))
                request.start_async()
        with self._lock:
            self._idle += requests

    def _take(self) -> list[ov.InferRequest]:
        with self._lock:
            requests, self._idle = self._idle[: self._streams], self._idle[self._streams :]
        missing = self._streams - len(requests)
        return requests + [self._compiled.create_infer_request() for _ in range(missing)]


def _empty(*shape: int) -> Tensor:
    """Independent of PyTorch's default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _shared(tensor: Tensor) -> ov.Tensor:
    """An OpenVINO tensor over the same memory."""
    return ov.Tensor(tensor.numpy(), shared_memory=True)
