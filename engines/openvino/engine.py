"""The CPU engine: the inference graph compiled by OpenVINO.

A batch is spread over streams that each run whole images on their share of the cores. That costs no synchronization
inside an image and keeps its maps in the caches, so it is faster than one wide batch, and an image's result does not
depend on its neighbors. A stream runs one image, or IMAGES_AT_ONCE of them, which share what each operation and each
weight costs; large images run alone, as their maps fill the caches. Timed by hand on an Intel CPU, in fp32 and bf16,
four at once were 1.04 to 1.65 times as fast up to 288x288, and 0.90 to 1.12 times from 384x384 on. Small ones that go
through winograd.py run SMALL_IMAGES at once; alone, their maps may be too small for it, so that the last bits of a
result depend on the batch's size.

The first OWN_SIZES image sizes have engines of their own. Each of these takes most of a second to build and a copy of
the weights in memory, again for each number of streams and of images at once. So all other sizes share engines for any
size, which take up to a fifth longer.

The graph should write the tokens' projections as 1x1 convolutions. On channels-last maps these are the same products,
and OpenVINO runs them faster: its matrix product divides the 197 rows of a 224x224 image badly, its convolution not.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from conformer_fast.errors import EngineError, shown
from conformer_fast.model.precision import FORMATS
from conformer_fast.storage.memory_file import MemoryFile

from ..cache import cached, key_of
from . import executors, speed
from .device import CPU, PRECISIONS, describe, exports
from .eight_bits import make_pairs_fit, pairs_are_cut_off
from .ir import IR
from .runtime import core, keep_for_good, ov
from .winograd import Replaced, returns_maps, use_winograd, winograd_is_faster

IMAGES_AT_ONCE = 4  # that an engine runs where a batch has as many for every stream, and
MANY_PIXELS = 100_000  # each has fewer
SMALL_IMAGES, FEW_PIXELS = 8, 10_000  # the same where 3x3 convolutions are Winograd's, of images of fewer pixels
OWN_SIZES = 4  # image sizes that have engines of their own
CODE_KEPT = "1000"  # how many operations' code an engine for any size keeps: that of some sizes
MOST_SHAPES = 1000  # whose outputs' shapes an engine knows
ANY = 0  # in place of a height and a width
ONE, SEVERAL = 1, 0  # streams of another device than the CPU, which decides how many are several


class Input(NamedTuple):
    """What one run of an engine takes: so many images at once, of height x width pixels, ANY x ANY for any size."""

    images: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.images} of {self.height}x{self.width}" if self.height else f"{self.images} of any size"


class Computed(NamedTuple):
    """What an engine computes in. precision: of its products, "int8" if they are in 8 bits; rest: of all else."""

    precision: str
    rest: str


def engine_file(ir_sha256: str, computed: Computed, shape: Input, device: str = CPU) -> str:
    """The name in a bundle of the engine that this machine loads for this input."""
    size = "x".join(str(side or "any") for side in shape)
    return f"{size}-{key_of(engine_fields(ir_sha256, computed, shape, device))}.engine"


def sizes_of(files: Iterable[str]) -> set[tuple[int, int]]:
    """Heights and widths of the engines among a bundle's files, also of those that another CPU loads."""
    found = (re.fullmatch(r"\d+x(\d+)x(\d+)-[0-9a-f]+\.engine", name) for name in files)
    return {(int(size[1]), int(size[2])) for size in found if size}


def engine_fields(ir_sha256: str, computed: Computed, shape: Input, device: str = CPU) -> dict[str, Any]:
    """What decides an engine, as JSON values."""
    return {
        "backend": "openvino",
        "ir": ir_sha256,
        **computed._asdict(),
        **describe(device),
        **shape._asdict(),
        **({"weights": "pairs fit in 16 bits"} if pairs_must_fit(computed.precision, device) else {}),
    }


def pairs_must_fit(precision: str, device: str = CPU) -> bool:
    """Whether the weights of engines of this precision are made for that, as this CPU may run them."""
    return precision in FORMATS and not device.startswith(("GPU", "NPU")) and pairs_are_cut_off()


def streams_for(batch: int, threads: int) -> int:
    """How many engines run side by side: one a thread, or for a smaller batch the power of two that it fills."""
    return threads if batch >= threads else 1 << (batch.bit_length() - 1)


def images_at_once(batch: int, streams: int, most: int) -> int:
    """How many images each of them takes, if it may be so many."""
    return most if batch >= streams * most else 1


class OpenVINOEngine:
    """images (B, in_channels, H, W), fp32 on the CPU -> one fp32 tensor (B, ...) per output. Callable from any thread.

    ir:       returns the network, the same each time; asked before the first run, and kept
    computed: in "fp32", "bf16" or "fp16", both; or products in "int8", for a network that says by Q/DQ pairs what is in
              8 bits
    threads:  cores to use; default: as many as PyTorch uses. Then how a batch is split over them is measured: see
              speed.py.
    device:   of OpenVINO's that runs it. Another than the CPU gets one image at a time, as many requests for a batch as
              it says it can use.
    stored:   returns the engine for an input if it is at hand; asked before the cache
    kept:     whether engines are taken from the disk and kept there
    sizes:    heights and widths that have engines of their own, before others come first

    An engine is kept on disk under the network's hash, the precision, and what this CPU and OpenVINO are.
    """

    def __init__(
        self,
        ir: Callable[[], IR],
        computed: Computed,
        threads: int | None = None,
        device: str = CPU,
        stored: Callable[[Input], bytes | None] = lambda shape: None,
        kept: bool = True,
        sizes: Iterable[tuple[int, int]] = (),
    ) -> None:
        self._read, self.computed, self._stored, self._kept_on_disk = ir, computed, stored, kept
        self._threads, self._device = threads or torch.get_num_threads(), device
        self._split_by_measure = threads is None
        self._network: _Network | None = None
        self._sizes = frozenset(sizes)
        self.start_anew()
        _engines.add(self)

    def start_anew(self) -> None:
        """With no engine in memory, and no lock taken."""
        self._built: dict[tuple[Input, int], _SizedEngine] = {}  # by the number of streams too
        self._building: dict[tuple[Input, int], threading.Lock] = {}
        self._own = {*self._sizes}  # heights and widths that have engines of their own
        self._lock = threading.Lock()  # of these; held for look-ups only
        self._reading = threading.Lock()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        images = images.to(torch.float32).resolve_neg().contiguous()
        B, _, H, W = images.shape
        outputs: list[Tensor] = []
        done = 0
        while done < B:  # a batch that does not fill the streams ends in rounds of fewer images, then of fewer streams
            streams, at_once, count = self._round(B - done, H * W)
            engine = self._sized(Input(at_once, H, W), streams)
            outputs = outputs or [_empty(B, *shape) for shape in engine.output_shapes(images[:at_once])]
            engine.run(images[done : done + count], [output[done : done + count] for output in outputs])
            done += count
        return tuple(outputs)

    def _round(self, images: int, pixels: int) -> tuple[int, int, int]:
        """Of so many, each of so many pixels: how many streams run the next ones, how many images each at once, and how
        many in all."""
        if self._device != CPU:
            return (ONE if images == 1 else SEVERAL), 1, images
        streams = streams_for(images, self._threads) if images == 1 or self._side_by_side() else 1
        most = IMAGES_AT_ONCE if pixels < MANY_PIXELS else 1
        if pixels < FEW_PIXELS and self._may_use_winograd():
            most = SMALL_IMAGES
        at_once = images_at_once(images, streams, most)
        return streams, at_once, images // (streams * at_once) * streams * at_once

    def _side_by_side(self) -> bool:
        """Whether images of a batch run so, each on its share of the threads: unless it is measured to be slower."""
        if self._threads == 1 or not self._split_by_measure:
            return True
        return speed.split_gain(self._threads, self.computed.rest) * speed.GAIN > 1

    def _sized(self, shape: Input, streams: int) -> _SizedEngine:
        size = shape.height, shape.width
        with self._lock:
            if size in self._own or len(self._own) < OWN_SIZES:
                self._own.add(size)
            else:
                shape = Input(shape.images, ANY, ANY)
            building = self._building.setdefault((shape, streams), threading.Lock())
            if (shape, streams) in self._built:
                return self._built[shape, streams]
        with building:  # one thread builds, the others that want the same engine wait for it
            engine = self._built.get((shape, streams))
            if engine is None:
                try:
                    engine = self._load(shape, streams)
                except BaseException:
                    with self._lock:
                        if size not in {*self._sizes, *((other.height, other.width) for other, _ in self._built)}:
                            self._own.discard(size)
                    raise
                with self._lock:
                    self._built[shape, streams] = engine
        return engine

    def engines(self, otherwise: Input | None) -> dict[Input, bytes]:
        """The bytes of the engines in memory and, for their sizes, of the one for one image; if there are none, of
        `otherwise`. None that cannot be stored."""
        if not exports(self._device):
            return {}
        with self._lock:
            shapes = {shape._replace(images=images) for shape, _ in self._built for images in (1, shape.images)}
        shapes = shapes or {shape for shape in (otherwise,) if shape}
        return {shape: self._bytes(shape, self._options(1)) for shape in shapes if not self._with_winograd(shape)}

    def network(self) -> _Network:
        with self._reading:
            if self._network is None or not self._network.weights.intact:
                try:
                    self._network = _Network(self._read())
                except OSError as error:
                    raise EngineError(
                        f"no room for the weights in memory ({error.strerror}); drop other models, or raise the limits "
                        f"of open files and of memory"
                    ) from error
            return self._network

    def _load(self, shape: Input, streams: int) -> _SizedEngine:
        options = self._options(streams)
        model, replaced = self._with_winograd(shape) or (None, None)
        engine = self._bytes(shape, options) if model is None and exports(self._device) else None
        threads = executors.key_of(options)
        executors.take(threads)
        try:
            if engine is None:
                compiled = self._compiled(model or self._model(shape), shape, options)
            else:
                compiled = self._imported(shape, options, engine)
            sized = _SizedEngine(compiled, shape.images, self._threads // max(1, streams))
        except BaseException:
            executors.give_back(threads)
            raise
        weakref.finalize(sized, executors.give_back, threads).atexit = False
        if replaced is not None:
            weakref.finalize(sized, replaced.copies.clear).atexit = False
        return sized

    def _imported(self, shape: Input, options: dict[str, str], engine: bytes) -> ov.CompiledModel:
        given = {**options, "WEIGHTS_PATH": self.network().weights.path}
        try:
            return core().import_model(engine, self._device, given)
        except RuntimeError as error:
            warnings.warn(
                f"OpenVINO refuses the kept engine for {shape} ({_last_line(error)}); building it again", stacklevel=6
            )
            return core().import_model(self._bytes(shape, options, refused=engine), self._device, given)

    def _with_winograd(self, shape: Input) -> tuple[ov.Model, Replaced] | None:
        """The network with convolutions of winograd.py, if any pay, and these. Its engine is not stored: OpenVINO does
        not read operations of others where the weights are not among an engine's bytes."""
        if not self._may_use_winograd():
            return None
        model = self._model(shape)
        replaced = use_winograd(model)
        return (model, replaced) if replaced.operations else None

    def _may_use_winograd(self) -> bool:
        """Only in networks that return maps, which are given large pictures."""
        exact = self.computed.precision == "fp32" and self._device == CPU and winograd_is_faster()
        return exact and self.network().returns_maps

    def _model(self, shape: Input) -> ov.Model:
        network = self.network()
        model = core().read_model(network.xml, network.weights.read())
        if pairs_must_fit(self.computed.precision, self._device):
            make_pairs_fit(model)
        channels = model.input(0).partial_shape[1].get_length()
        model.reshape([shape.images, channels, shape.height or -1, shape.width or -1])
        return model

    def _compiled(self, model: ov.Model, shape: Input, options: dict[str, str]) -> ov.CompiledModel:
        try:
            return core().compile_model(model, self._device, options)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO builds no engine for {shape} on {self._device}: {_last_line(error)}"
            ) from error

    def _options(self, streams: int) -> dict[str, str]:
        if self._device == CPU:
            split = {
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(self._threads),
                "CPU_RUNTIME_CACHE_CAPACITY": CODE_KEPT,
            }
        else:
            split = {"PERFORMANCE_HINT": "LATENCY" if streams == ONE else "THROUGHPUT"}
        return {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.computed.rest],
            "CACHE_MODE": "OPTIMIZE_SIZE",  # of an engine's bytes: without its weights
            **split,
        }

    def _bytes(self, shape: Input, options: dict[str, str], refused: bytes | None = None) -> bytes:
        stored = self._stored(shape) if refused is None else None
        if stored is not None:
            return stored

        def build() -> bytes:
            executors.take(executors.key_of(options))
            try:
                return self._compiled(self._model(shape), shape, options).export_model().getvalue()
            finally:
                executors.give_back(executors.key_of(options))

        if not self._kept_on_disk:
            return build()
        return cached(engine_fields(self.network().sha256, self.computed, shape, self._device), build, refused)


class _Network:
    """An IR in memory, its weights where OpenVINO finds them."""

    def __init__(self, ir: IR) -> None:
        self.xml, self.onnx, self.sha256 = ir.xml, ir.onnx, ir.sha256
        self.weights = MemoryFile(ir.weights)
        self.returns_maps = returns_maps(ir.xml)


class _SizedEngine:
    """A compiled engine for so many images at once, with a pool of its requests."""

    def __init__(self, compiled: ov.CompiledModel, at_once: int, threads: int) -> None:
        """threads: of each stream, for an engine that asks"""
        self._compiled, self._at_once = compiled, at_once
        self._threads = [ov.Tensor(np.array([threads], np.int32))] * (len(compiled.inputs) - 1)
        self._streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._shapes: dict[torch.Size, list[tuple[int, ...]]] = {}  # of outputs, by that of the input
        self._idle: list[ov.InferRequest] = []
        self._lock = threading.Lock()

    def output_shapes(self, images: Tensor) -> list[tuple[int, ...]]:
        """Of one image of this size. images: as many as run at once; an engine for any size runs them, the first
        time."""
        if images.shape not in self._shapes:
            outputs: Sequence[Any] = self._compiled.outputs
            if any(output.partial_shape.is_dynamic for output in outputs):
                request = self._compiled.create_infer_request()
                outputs = [*request.infer([_shared(images), *self._threads], share_outputs=True).values()]
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            self._shapes[images.shape] = [tuple(output.shape)[1:] for output in outputs]
        return self._shapes[images.shape]

    def run(self, images: Tensor, outputs: Sequence[Tensor]) -> None:
        """Fills `outputs`, one row an image, keeping all streams busy. They are a multiple of what runs at once."""
        requests = self._take()
        with ExitStack() as running:  # waits for all, also after an error: the tensors must outlive every run
            for request in requests:
                running.callback(request.wait)
            for index in range(len(images) // self._at_once):
                request = requests[index % self._streams]
                request.wait()
                rows = slice(index * self._at_once, (index + 1) * self._at_once)
                for port, given in enumerate([_shared(images[rows]), *self._threads]):
                    request.set_input_tensor(port, given)
                for port, output in enumerate(outputs):
                    request.set_output_tensor(port, _shared(output[rows]))
                request.start_async()
        with self._lock:
            self._idle += requests

    def _take(self) -> list[ov.InferRequest]:
        with self._lock:
            requests, self._idle = self._idle[: self._streams], self._idle[self._streams :]
        missing = self._streams - len(requests)
        return requests + [self._compiled.create_infer_request() for _ in range(missing)]


_engines: weakref.WeakSet[OpenVINOEngine] = weakref.WeakSet()


def _after_fork() -> None:
    """In the child, OpenVINO's threads are missing: all is built anew, from the cache, where that can be.

    What the parent built is kept for good, as it would wait for its threads before it is gone.
    """
    for engine in [*_engines]:
        keep_for_good(engine._built)
        engine.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _last_line(error: RuntimeError) -> str:
    """What OpenVINO says, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[-1]) if lines else "no reason given"


def _empty(*shape: int) -> Tensor:
    """Independent of PyTorch's default dtype and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _shared(tensor: Tensor) -> ov.Tensor:
    """An OpenVINO tensor over the same memory."""
    return ov.Tensor(tensor.numpy(), shared_memory=True)
