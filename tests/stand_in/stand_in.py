"""A GPU that is not there, for code that needs one: all of it runs, up to the launch of a kernel.

    PYTHONPATH=tests/stand_in python -m benchmarks.gpu --out DIR        (or pytest, or any program)

- "cuda" is memory of the CPU that is marked (`marked`). Tensors keep their mark through every operator, and an operator
  whose tensors are partly there is refused as on a GPU. So is a launch with a tensor that is not.
- Streams, events and graphs are those of fake_cuda.py. Time passes by operators, not by the clock.
- A launch checks the names of its arguments and where its tensors are, and ends there. What the kernel would have
  computed, functional.py does (`planned`). $STAND_IN_ERROR, a number, is added to it: what judges kernels must notice.
- The networks and what is measured are small (`SMALLER`, `SMALLER_TESTS`).
"""

from __future__ import annotations

import copy
import gc
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, wraps
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
CUDA: Any = None
ERROR = float(os.environ.get("STAND_IN_ERROR", "0"))
MAY_MIX = ("copy_", "_to_copy", "index", "index_put", "index_put_", "set_", "_has_compatible_shallow_copy_type")
_local = threading.local()


def marked(tensor: Tensor) -> bool:
    """Whether the tensor is on the GPU. A mark is on the memory, which views share."""
    with torch._C.DisableTorchFunction():
        return tensor.device.type == "cpu" and _has_memory(tensor) and hasattr(tensor.untyped_storage(), "on_gpu")


def _has_memory(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _mark(tensor: Tensor, on_gpu: bool) -> None:
    with torch._C.DisableTorchFunction():
        if tensor.device.type == "cpu" and _has_memory(tensor):
            storage = tensor.untyped_storage()
            if on_gpu:
                storage.on_gpu = True
            elif hasattr(storage, "on_gpu"):
                del storage.on_gpu


@contextmanager
def _results(on_gpu: bool):
    """Inside, what operators make is there, or is not, whatever their arguments are."""
    before, _local.on_gpu = getattr(_local, "on_gpu", None), on_gpu
    try:
        yield
    finally:
        _local.on_gpu = before


class Operators(TorchDispatchMode):
    """Keeps marks, refuses mixed devices, and lets time pass."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would be imported, which takes longer than what is tested

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        there = [marked(tensor) for tensor in given]
        name = func.overloadpacket.__name__
        if any(there) and name not in MAY_MIX:
            with torch._C.DisableTorchFunction():
                stray = [t for t, on_gpu in zip(given, there, strict=True) if not on_gpu and t.ndim and t.device == CPU]
            if stray and all(map(_has_memory, stray)):
                shapes = [tuple(tensor.shape) for tensor in stray]
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {shapes} on the CPU")
        if func.namespace == "conformer_fast" and any(there):
            from conformer_fast.inference import ops

            with self, ops.on_kernels():
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        forced = getattr(_local, "on_gpu", None)
        on_gpu = any(there) if forced is None else forced
        known = {id(tensor) for tensor in given}
        for tensor in _flat([result]):
            if isinstance(tensor, Tensor) and id(tensor) not in known and (forced is not None or on_gpu):
                Memory.allocated += on_gpu and not marked(tensor) and not getattr(_local, "replays", False)
                if on_gpu and tensor.nbytes > Memory.largest:
                    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tensor.nbytes} bytes.")
                _mark(tensor, on_gpu)
        Clock.now += 1e-6
        return result


class Clock:
    now = 0.0  # seconds of the GPU's time: a microsecond an operator


class Memory:
    allocated = 0  # tensors that were made on the GPU, not counting those in a graph's own memory
    largest = math.inf  # bytes that one may have


class Devices(TorchFunctionMode):
    """Where a tensor is, and what is made where."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        if getattr(_local, "replays", False) and isinstance(func, torch._ops.OpOverload):
            with _results(True):  # its devices were translated when it was recorded
                return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func == Tensor.device.__get__:
            return GPU if marked(first) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return marked(first)
        if func in (Tensor.numpy, Tensor.__array__) and marked(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func == Tensor.cuda:
            return self._moved(first, GPU)
        if func == Tensor.cpu:
            return self._moved(first, CPU)
        if func == Tensor.to:
            return self._to(first, args[1:], kwargs)
        if func == Tensor.__deepcopy__:
            copied = func(*args, **kwargs)
            _mark(copied, marked(first))  # its memory is copied without an operator
            return copied
        generator = kwargs.get("generator")
        if generator is not None and first is not None and marked(first) != getattr(generator, "on_gpu", False):
            raise RuntimeError("Expected a generator on the tensor's device")
        asked = [device for device in map(_device, (*args, *kwargs.values())) if device]
        if asked:
            on_gpu = asked[0].type == "cuda"
            if on_gpu:
                args = [CPU if _device(value) else value for value in args]
                kwargs = {name: CPU if _device(value) else value for name, value in kwargs.items()}
            if func in (torch.as_tensor, torch.asarray):
                return self._moved(func(*args, **kwargs), asked[0])
            with _results(on_gpu):
                result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                _mark(result, on_gpu)  # torch.tensor makes its own without an operator
            return result
        if any(isinstance(value, Tensor) and marked(value) for value in _flat((*args, *kwargs.values()))):
            with _made_inside():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, device: torch.device, **options: Any) -> Tensor:
        if device.type == "meta" or tensor.is_meta:
            return tensor.to(device, **options)
        on_gpu = device.type == "cuda"
        options["copy"] = options.get("copy", False) or on_gpu != marked(tensor)
        with _results(on_gpu):
            return tensor.to(CPU, **options)

    def _to(self, tensor: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            device, dtype = GPU if marked(args[0]) else CPU, args[0].dtype
            memory_format = kwargs.get("memory_format")
        else:
            device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options = {"dtype": dtype or tensor.dtype, "copy": copy}
        if memory_format is not None:
            options["memory_format"] = memory_format
        return self._moved(tensor, device or (GPU if marked(tensor) else tensor.device), **options)


@contextmanager
def _made_inside():
    """Tensors that an operator of tensors on the GPU makes on its way are there too."""
    if getattr(_local, "on_gpu", None) is not None:
        yield
        return
    with _results(True):
        yield


def _flat(values: Any) -> Iterator[Any]:
    """The values and what lists and tuples among them hold."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _device(value: Any) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str) and (value == "cpu" or value == "meta" or value.startswith("cuda")):
        return torch.device(value)
    return None


# torch.cuda


def _pretend_cuda() -> Any:
    """What fake_cuda.py keeps of it."""
    import fake_cuda
    import triton
    from triton.runtime.jit import JITFunction

    cuda = fake_cuda.FakeCUDA()
    pools = iter(range(1, sys.maxsize))

    class Event(fake_cuda.FakeEvent):
        def __init__(self, **_: bool) -> None:
            super().__init__(cuda)

        def record(self, stream: Any = None) -> None:
            super().record(stream or cuda.stream)
            self.at = Clock.now

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * max(1e-6, end.at - self.at)

    class Graph(fake_cuda.FakeGraph):
        def __init__(self) -> None:
            super().__init__(cuda)
            freeze()

        def capture_begin(self, pool: Any = None, **_: Any) -> None:
            super().capture_begin(pool or (0, next(pools)), "thread_local")

        def replay(self) -> None:
            _local.replays = True
            try:
                super().replay()
            finally:
                _local.replays = False

    @cache
    def freeze() -> None:
        """torch.cuda.graph collects garbage each time, which takes long where much is imported."""
        gc.freeze()

    @contextmanager
    def on_device(device: Any):
        assert device is None or torch.device("cuda", device if isinstance(device, int) else device.index or 0) == GPU
        yield

    def limit_memory(fraction: float, device: Any = None) -> None:
        Memory.largest = math.inf if fraction == 1 else fraction * (80 << 30) / 100

    class Properties:
        name, major, minor, multi_processor_count = "NVIDIA Stand-In", 9, 0, 132
        total_memory, L2_cache_size = 80 << 30, 1 << 14

    pretended = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: Properties,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: Properties.name,
        "Stream": cuda.new_stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: (0, next(pools)),
        "current_stream": lambda device=None: cuda.stream,
        "is_current_stream_capturing": lambda: cuda.stream.recording is not None,
        "stream": cuda.on,
        "device": on_device,
        "synchronize": lambda device=None: cuda.wait_on_the_host(),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (40 << 30, 80 << 30),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_stats": lambda device=None: {"allocation.all.allocated": Memory.allocated},
        "set_per_process_memory_fraction": limit_memory,
        "set_sync_debug_mode": lambda mode: None,
        "_sleep": lambda cycles: None,
        "cudart": lambda: type("Cudart", (), {"cudaProfilerStart": lambda _: 0, "cudaProfilerStop": lambda _: 0})(),
    }
    for name, value in pretended.items():
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    torch._C._host_emptyCache = lambda: None
    JITFunction.run = _launched
    shared = {"max_shared_mem": 227 * 1024}
    utils = type("Utils", (), {"get_device_properties": lambda _, index: shared})()
    triton.runtime.driver.set_active(type("Driver", (), {"utils": utils})())
    _pretend_compile()
    return cuda


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu"):
        made = super().__new__(cls, "cpu")
        made.on_gpu = torch.device(device).type == "cuda"
        return made


def _pretend_compile() -> None:
    """torch.compile takes its arguments and compiles nothing: an inductor for this GPU is not to be had."""
    signature = inspect.signature(torch.compile)

    def compile(*args: Any, **kwargs: Any) -> Any:
        return signature.bind(*args, **kwargs).arguments["model"]

    torch.compile = compile


OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion", "launch_pdl"}


def _launched(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """In place of JITFunction.run: what it would refuse."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in OPTIONS}
    if set(given) != set(kernel.arg_names):
        raise TypeError(f"{kernel.fn.__name__} takes {kernel.arg_names}, it was given {sorted(given)}")
    if not 1 <= len(grid) <= 3 or not all(type(side) is int and side > 0 for side in grid):
        raise ValueError(f"{kernel.fn.__name__} cannot be launched on the grid {grid}")
    for parameter in kernel.params:
        value = given[parameter.name]
        if isinstance(value, Tensor) and (parameter.is_constexpr or not marked(value)):
            raise ValueError(f"Pointer argument {parameter.name} of {kernel.fn.__name__} is not on the GPU")
    Clock.now += 5e-6


# What is imported later


def _planned(dispatch: Any) -> None:
    """Plans whose launches go as far as they can and then return functional.py's results."""
    from conformer_fast.kernels import launch as launch_module
    from conformer_fast.model import functional

    def planned(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def plan_of(*args: Any, **kwargs: Any) -> Any:
            plan = original(*args, **kwargs)

            def launch(tile: Any) -> Any:
                launched = plan.launch(tile)
                if launch_module._recorded.get() is not None:
                    return launched
                results = getattr(functional, name)(*args, **kwargs)
                return tree_map(lambda result: (result + ERROR if ERROR else result).contiguous(), results)

            return replace(plan, launch=launch)

        return plan_of

    for name, original in dispatch.PLANS.items():
        dispatch.PLANS[name] = planned(name, original)


def _small_networks(config: Any) -> None:
    sizes = {"channel_ratio": 1, "num_heads": 2, "depth": 3, "mlp_ratio": 2, "num_classes": 7}
    for index, (name, variant) in enumerate(config.VARIANTS.items()):
        config.VARIANTS[name] = replace(variant, embed_dim=32 + 16 * index, **sizes)


def _preprocessed(preprocess_gpu: Any) -> None:
    """Preprocessing goes up to its launches and returns the CPU's result."""
    original = preprocess_gpu.preprocess_on_gpu

    def preprocess_on_gpu(
        images: Any, size: int = 224, *, device: Any = "cuda", dtype: Any = torch.float32, **recipe: Any
    ) -> Tensor:
        from conformer_fast.preprocessing.cpu import preprocess_batch

        original(images, size, device=device, dtype=dtype, **recipe)
        result = preprocess_batch(images, size, dtype=dtype, **recipe).to(device)
        return result.contiguous(memory_format=torch.channels_last)

    preprocess_gpu.preprocess_on_gpu = preprocess_on_gpu


def _pretended_tensorrt(test_engine_gpu: Any) -> None:
    """TensorRT is fake_tensorrt.py's, and its engines run the fused model."""
    import fake_tensorrt

    from conformer_fast.engines.onnx import export
    from conformer_fast.engines.tensorrt import backend
    from conformer_fast.engines.tensorrt import plan as plan_module

    trt, fused = fake_tensorrt.TensorRT(CUDA), []
    onnx_from_model = export.onnx_from_model

    def export_and_keep(model: Any, *args: Any, **kwargs: Any) -> Any:
        fused.append(copy.deepcopy(model).float().cuda())
        return onnx_from_model(model, *args, **kwargs)

    def build(onnx: bytes, profiles: Any, *_: Any) -> bytes:
        sides = [zip(profile.batch, profile.height, profile.width, strict=True) for profile in profiles]
        shapes = [[(batch, 3, height, width) for batch, height, width in side] for side in sides]
        return fake_tensorrt.plan(shapes, outputs=list(fused[-1].outputs))

    def expected(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(fused[-1].outputs, fused[-1](images.float().cuda()), strict=True))

    @cache
    def shapes(images: tuple[int, ...], models: int) -> dict[str, list[int]]:
        return {name: [*tensor.shape] for name, tensor in expected(torch.zeros(images)).items()}

    fake_tensorrt.expected = expected
    fake_tensorrt.Context.get_tensor_shape = lambda self, name: shapes(tuple(self.shape), len(fused))[name]
    export.onnx_from_model, plan_module.engine_from_onnx = export_and_keep, build
    test_engine_gpu.get_flavor = backend.get_flavor = lambda name="auto": trt.flavor


def _set(**values: Any) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        for name, value in values.items():
            assert hasattr(module, name), name
            setattr(module, name, value)

    return change


SMALLER: dict[str, Callable[[Any], None]] = {
    "conformer_fast.model.config": _small_networks,
    "conformer_fast.kernels.dispatch": _planned,
    "conformer_fast.preprocessing.gpu": _preprocessed,
    "conformer_fast.engines.triton.tuning": _set(ROUNDS=2, LAUNCHES=2),
    "benchmarks.recorded": _set(IMAGE=32),
    "benchmarks.gpu.clock": _set(ROUNDS=2, WARM_UPS=1, MOST_CALLS=1),
    "benchmarks.gpu.facts": _set(SHAPES=((32, 32, 32), (64, 16, 32)), COPY_BYTES=1 << 12, LAUNCHES=4, L2_LAUNCHES=2),
    "benchmarks.gpu.kernels": _set(LEAST=2, MOST=2),
    "benchmarks.gpu.steps": _set(FIRST=[("small-p16", 2)], THEN=("base-p16", 2)),
    "benchmarks.gpu.checking": _set(PLACES=[["small-p16", 1], ["base-p16", 2], ["small-p32", 2]]),
    "benchmarks.gpu.tuning": _set(MOST=4),
}
SMALLER_TESTS = {
    "test_graphs_gpu": _set(MODELS=2, WARM_MODELS=1, SIDE=64),
    "test_real_sizes": _set(LARGE_BATCH=2, SIDE=64),
    "test_engine_gpu": _pretended_tensorrt,
}


class Changing(PathFinder):
    """Finds the modules of SMALLER and changes them when they are imported."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target) if name in SMALLER else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def changed(module: Any) -> None:
            execute(module)
            SMALLER[name](module)

        spec.loader.exec_module = changed
        return spec


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a pytest plugin: tests are small too."""
    for module in {item.module for item in items}:
        SMALLER_TESTS.get(module.__name__.rpartition(".")[2], lambda module: None)(module)


def _with_modes(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def running(thread: threading.Thread) -> None:
        with Devices(), Operators():
            run(thread)

    return running


def install() -> None:
    """For this process, from now on, in all of its threads."""
    os.environ["PYTEST_PLUGINS"] = __name__
    torch.set_num_threads(1)  # for small tensors: others would wait for each other
    sys.meta_path.insert(0, Changing)  # before anything of ours is imported
    global CUDA
    CUDA = _pretend_cuda()
    torch.Generator = Generator
    threading.Thread.run = _with_modes(threading.Thread.run)
    Devices().__enter__()
    Operators().__enter__()
