"""The TensorRT engine at run time: torch tensors in and out, in the order of the current CUDA stream.

A call takes a lane, which is memory for one run at a time. For each shape it has seen, a lane has an execution context
of its own over that memory, with images and outputs that never move: a run is a CUDA graph between two copies. Calls at
the same time take different lanes; a lane's next run waits, on the GPU, for the one before. So nothing waits on the
host, except where a shape is new to a lane.

TensorRT is recorded by PyTorch. TensorRT-RTX records itself, and would do so again whenever an address changes.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conformer_fast.errors import ArgumentError, EngineError
from conformer_fast.model.shapes import Shapes

from ..cuda import OUT_OF_MEMORY, RECORDING, GPUMemoryError, bucket
from .flavors import Flavor, Log
from .kernel_cache import RuntimeCacheFile

IMAGES = "images"  # the plan's only input
SHAPES_KEPT = 32  # of one lane; then the least recently used is dropped
CACHE_WRITES = 32  # of one engine, so that one whose kernels serialize to other bytes each time does not write for ever

Outputs = tuple[Tensor, ...]
Key = tuple[int, int, int, int]  # profile's index, rows, height, width


class TensorRTEngine:
    """images (B, in_channels, H, W), on the GPU -> one fp32 tensor (B, ...) per output. Callable from any thread.

    plan:          the built engine. Deserializing it runs native code, so the caller has checked whose bytes these are.
    flavor:       the TensorRT that runs it
    outputs:       which of the plan's outputs to return, in order
    device:        the GPU to run on
    runtime_cache: where TensorRT-RTX's kernels for this GPU are kept; each that is missing is compiled at the first
                   call that needs it

    A batch runs in the next larger `bucket`, or the profile's largest. Calls at the same time need working memory each,
    which is kept for later ones as long as the engine lives. Calls raise ArgumentError for a shape outside all
    profiles, GPUMemoryError without memory for it. Both they and the constructor raise EngineError, with what TensorRT
    said, when it fails.
    """

    def __init__(
        self,
        plan: bytes,
        flavor: Flavor,
        outputs: Sequence[str],
        device: torch.device,
        runtime_cache: RuntimeCacheFile | None = None,
    ) -> None:
        self.plan = plan  # for a bundle of it
        self._plan = _Plan(plan, flavor, tuple(outputs), device, runtime_cache)
        self._idle: list[_Lane] = []
        self._lock = threading.Lock()  # of the list; held for look-ups only
        weakref.finalize(self, _retire, self._idle, self._plan).atexit = False

    def __call__(self, images: Tensor) -> Outputs:
        key = self._plan.key(images.shape)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a TensorRT engine is a CUDA graph already; call it outside of torch.cuda.graph")
        with torch.cuda.device(self._plan.device), torch.no_grad():
            try:
                with self._lane() as lane:
                    return lane.run(key, images)
            except torch.OutOfMemoryError:
                pass  # it would keep alive what the failed run made
            raise self._plan.no_room(images.shape)

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """Inside, no other call has this lane. There are as many as there were calls at the same time."""
        with self._lock:
            lane = self._idle.pop() if self._idle else None
        lane = lane or _Lane(self._plan)
        try:
            yield lane
        finally:
            with self._lock:
                self._idle.append(lane)
            _collect()


class _Plan:
    """A deserialized plan, which the lanes share."""

    def __init__(
        self,
        plan: bytes,
        flavor: Flavor,
        outputs: tuple[str, ...],
        device: torch.device,
        runtime_cache: RuntimeCacheFile | None,
    ) -> None:
        log = Log(flavor)
        what = f"cannot load the plan of {len(plan):,} bytes on {device}; build it again for this GPU and version"
        self.flavor, self.outputs, self.device = flavor, outputs, device
        with torch.cuda.device(device):
            torch.cuda.empty_cache()  # TensorRT takes its memory from CUDA, not from what PyTorch keeps
            try:
                runtime = flavor.module.Runtime(log.logger)
                engine = runtime.deserialize_cuda_engine(plan)
            except (RuntimeError, TypeError) as error:
                raise log.error(f"{flavor} {what}: {error}") from error
            self.log = log
            if engine is None:
                # Now: freed by a garbage collection while TensorRT calls our logger, it would wait for TensorRT's lock.
                del runtime
            self.require(engine is not None, what)
            self.engine, self._runtime = engine, runtime
            self._check_tensors()
            self.channels = engine.get_tensor_shape(IMAGES)[1]
            self.profiles = [self._profile(index) for index in range(engine.num_optimization_profiles)]
            self.scratch_bytes = int(engine.device_memory_size_v2)
            self._cache_file, self._cache_writes, self._kept = runtime_cache, CACHE_WRITES, b""
            self._kernels = self._read_kernels() if flavor.has_runtime_cache else None

    def key(self, shape: Sequence[int]) -> Key:
        """What runs images of this shape. Raises ArgumentError, with the limits, where no profile admits it."""
        refusals = []
        for index, profile in enumerate(self.profiles):
            try:
                profile.check(shape)
            except ValueError as refusal:
                refusals.append(str(refusal))
            else:
                return index, min(bucket(shape[0]), profile.batch[2]), shape[2], shape[3]
        raise ArgumentError("; or: ".join(refusals))

    def context(self) -> Any:
        """A new execution context, which has yet to be given its memory."""
        module = self.flavor.module
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.flavor.captures_graphs_itself:
            config = self._runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # The default answers with slower kernels, whose results differ in rounding, until these are compiled.
            config.dynamic_shapes_kernel_specialization_strategy = (
                module.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if self._kernels is not None:
                self.require(config.set_runtime_cache(self._kernels), "took no runtime cache")
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(strategy)
        self.require(context is not None, "made no execution context")
        return context

    def require(self, accepted: bool, failure: str) -> None:
        """Raises EngineError unless `accepted`; torch's OutOfMemoryError if that is what the log says."""
        if accepted:
            return
        error = self.log.error(f"{self.flavor} {failure}")
        self.log.messages.clear()  # the next failure has reasons of its own
        if any(sign in str(error) for sign in (*OUT_OF_MEMORY, "OutOfMemory")):
            raise torch.OutOfMemoryError(str(error))
        raise error

    def no_room(self, shape: Sequence[int]) -> GPUMemoryError:
        """The error for images of this shape that found no memory."""
        torch.cuda.empty_cache()  # what the failed run held
        free, total = torch.cuda.mem_get_info(self.device)
        _, rows, H, W = self.key(shape)
        needed = self.scratch_bytes + 4 * rows * self.channels * H * W
        return GPUMemoryError(
            f"a call with {shape[0]} {H}x{W} images needs {needed:,} bytes, of which the engine takes "
            f"{self.scratch_bytes:,} for any batch; {self.device} has {free:,} bytes free of {total:,}; free memory, "
            f"make fewer calls at the same time, or build the engine for smaller batches or images",
            free,
            total,
        )

    def keep_kernels(self) -> None:
        """Writes the kernels compiled so far, if there are new ones and a file for them."""
        if self._kernels is None or self._cache_file is None or not self._cache_writes:
            return
        serialized = self._kernels.serialize()
        content = b"" if serialized is None else bytes(serialized)
        digest = hashlib.sha256(content).digest()
        if content and digest != self._kept:
            self._cache_writes -= 1
            self._kept = digest
            self._cache_file.write(content)

    def _read_kernels(self) -> Any:
        """The kernels compiled by earlier programs; none if they were for another GPU or version."""
        kernels = self._runtime_config().create_runtime_cache()
        self.require(kernels is not None, "made no runtime cache")
        content = self._cache_file.read() if self._cache_file else None
        if content and kernels.deserialize(content):
            self._kept = hashlib.sha256(content).digest()
        return kernels

    def _runtime_config(self) -> Any:
        config = self.engine.create_runtime_config()
        self.require(config is not None, "made no runtime configuration")
        return config

    def _check_tensors(self) -> None:
        engine, module = self.engine, self.flavor.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
        self.returned = [name for name in names if name not in inputs]
        if inputs != [IMAGES] or not set(self.outputs) <= set(self.returned):
            raise EngineError(
                f"the plan reads {', '.join(inputs)} and returns {', '.join(self.returned)}; it should read {IMAGES} "
                f"and return {', '.join(self.outputs)}; it was built from another graph"
            )
        for name in names:
            dtype = engine.get_tensor_dtype(name)
            if dtype != module.DataType.FLOAT:
                raise EngineError(f"the plan's {name} are {dtype}, not fp32; it was built from another graph")

    def _profile(self, index: int) -> Shapes:
        batch, _, height, width = zip(*map(tuple, self.engine.get_tensor_profile_shape(IMAGES, index)), strict=True)
        return Shapes(batch, height, width)


@dataclass(eq=False)
class _Shape:
    """An execution context that runs one shape: it reads `images` and writes `outputs`, which never move.

    outputs: all of the plan's, also those that nobody asked for
    graph:   the recorded run; None where the context records itself
    """

    context: Any
    images: Tensor
    outputs: Mapping[str, Tensor]
    graph: torch.cuda.CUDAGraph | None


class _Lane:
    """Memory for one run at a time, and the shapes that run in it."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._shapes: OrderedDict[Key, _Shape] = OrderedDict()
        with torch.inference_mode(False):
            self._scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=plan.device)
        # Not the caller's: on the default stream TensorRT waits on the host. PyTorch has 32 streams of each priority
        # and hands them out again and again; those of the higher one record (graphs.py): nothing else does there.
        self._stream = torch.cuda.Stream(priority=0 if plan.flavor.captures_graphs_itself else -1)
        self._done = torch.cuda.Event()  # the end of the last run, with its outputs copied

    def run(self, key: Key, images: Tensor) -> Outputs:
        """Runs these images on the current stream."""
        stream, rows = torch.cuda.current_stream(), len(images)
        stream.wait_event(self._done)
        try:
            shape = self._shape(key)
            shape.images[:rows].copy_(images)  # from any strides and dtype
            if shape.graph:
                shape.graph.replay()
            else:
                self._enqueue(shape.context)
            return tuple(shape.outputs[name][:rows].clone() for name in self._plan.outputs)
        finally:
            self._done.record(stream)

    def finish(self) -> None:
        """Waits until the last run has ended."""
        self._done.synchronize()

    def _shape(self, key: Key) -> _Shape:
        if key in self._shapes:
            self._shapes.move_to_end(key)
            return self._shapes[key]
        with RECORDING:
            if len(self._shapes) >= SHAPES_KEPT:
                self.finish()
                self._shapes.popitem(last=False)
            shape = self._shapes[key] = self._prepare(key)
            self._plan.keep_kernels()
        return shape

    def _prepare(self, key: Key) -> _Shape:
        plan, (index, rows, H, W) = self._plan, key
        torch.cuda.empty_cache()  # TensorRT takes the context's own memory from CUDA
        shape = rows, plan.channels, H, W
        context = plan.context()
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        switched = context.set_optimization_profile_async(index, self._stream.cuda_stream)  # runs come on that stream
        plan.require(switched, f"took no profile {index}")
        plan.require(context.set_input_shape(IMAGES, shape), f"took no images of shape {shape}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:
            raise plan.log.error(f"{plan.flavor} refuses images of shape {shape}: {error}") from error
        plan.require(not unknown, f"does not know the shape of {', '.join(unknown)} for images of shape {shape}")
        with torch.inference_mode(False):
            images = torch.zeros(shape, dtype=torch.float32, device=plan.device)  # no image fills the spare rows
            outputs = {
                name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=torch.float32, device=plan.device)
                for name in plan.returned
            }
        for name, tensor in {IMAGES: images, **outputs}.items():
            plan.require(context.set_tensor_address(name, tensor.data_ptr()), f"took no address for {name}")
        self._enqueue(context)  # compiles kernels; TensorRT cannot be recorded before it has run a shape once
        graph = None
        if plan.flavor.captures_graphs_itself:
            self._enqueue(context)  # with all kernels there, so that it records now, while nobody else does
        else:
            graph = self._record(context)
        return _Shape(context, images, outputs, graph)

    def _enqueue(self, context: Any) -> None:
        """One run on the lane's own stream, between what the current stream has issued and what it will issue."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                accepted = context.execute_async_v3(self._stream.cuda_stream)
        finally:
            current.wait_stream(self._stream)
        if not accepted:
            self._stream.synchronize()  # the context may be on its way out
        self._plan.require(accepted, "did not run")

    def _record(self, context: Any) -> torch.cuda.CUDAGraph | None:
        """The run as a graph; None, with a warning, if TensorRT does something in it that cannot be recorded."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        mode = "thread_local"  # other threads may allocate memory meanwhile
        accepted, reason = False, ""
        try:
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode=mode):
                accepted = context.execute_async_v3(self._stream.cuda_stream)
        except RuntimeError as error:
            accepted, reason = False, f": {error}"
        if not accepted:
            try:
                self._plan.require(False, f"cannot be recorded as a CUDA graph{reason}")
            except EngineError as error:
                warnings.warn(f"{error}; it runs without one, slower for small batches", stacklevel=2)
                return None
        return graph


_retired: deque[tuple[list[_Lane], _Plan]] = deque()


def _retire(lanes: list[_Lane], plan: _Plan) -> None:
    """Takes over what a dead engine leaves: its last runs may still be going on.

    Called by Python's garbage collector, so anywhere, even inside a recording of this thread.
    """
    _retired.append((lanes, plan))
    _collect()


def _collect() -> None:
    """Frees what is retired. Where it must not, inside a recording, the end of the next call does."""
    while _retired and not torch.cuda.is_current_stream_capturing():
        with suppress(IndexError):  # another thread was faster
            lanes, plan = _retired.popleft()
            while lanes:
                lanes.pop().finish()
            del plan  # after the contexts made from it
