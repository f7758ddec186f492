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
from collections.abc import Callable, Iterable
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
MEMORY = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer})  # the types of tensors that have some
NESTED = (list, tuple)
PRODUCTS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("linear", "conv2d", "convolution", "addmm", "mm", "bmm", "matmul", "scaled_dot_product_attention")
)


class _Local(threading.local):
    on_gpu: bool | None = None  # whether what operators make is there; None: if their arguments are
    replays = False


_local = _Local()


# What follows runs at every operator and every look at a tensor, so it is written for speed.


def marked(tensor: Tensor) -> bool:
    """Whether the tensor is on the GPU. A mark is on the memory, which views share."""
    with torch._C.DisableTorchFunction():
        return _is_marked(tensor)


def _is_marked(tensor: Tensor) -> bool:
    return type(tensor) in MEMORY and hasattr(tensor.untyped_storage(), "on_gpu")


def _mark(tensor: Tensor, on_gpu: bool) -> None:
    if type(tensor) in MEMORY and tensor.is_cpu:
        storage = tensor.untyped_storage()
        if on_gpu:
            storage.on_gpu = True
        elif hasattr(storage, "on_gpu"):
            del storage.on_gpu


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those among the values and in their lists and tuples."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, NESTED):
            found += [inner for inner in value if isinstance(inner, Tensor)]
    return found


def _multiplied(func: Any, args: tuple, kwargs: dict[str, Any], given: list[Tensor]) -> Tensor:
    """The product of float16 tensors, summed in float32 as on a GPU; in float16 a CPU takes ten times as long."""
    if not all(tensor.dtype is torch.float16 and type(tensor) in MEMORY for tensor in given):
        return func(*args, **kwargs)
    args, kwargs = tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, (args, kwargs))
    return func(*args, **kwargs).half()


class _Results:
    """Inside, what operators make is there, or is not, whatever their arguments are."""

    __slots__ = ("before", "on_gpu")

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def __enter__(self) -> None:
        self.before, _local.on_gpu = _local.on_gpu, self.on_gpu

    def __exit__(self, *_: object) -> None:
        _local.on_gpu = self.before


def _copies(func: Any) -> bool:
    """Whether it has no kernel on a GPU either."""
    from conformer_fast.inference import ops

    return func.overloadpacket.__name__ in ops.MOVES


class Operators(TorchDispatchMode):
    """Keeps marks, refuses mixed devices, and lets time pass."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would be imported, which takes longer than what is tested

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = _tensors((*args, *kwargs.values()) if kwargs else args)
        there = list(map(_is_marked, given))
        on_gpu = True in there
        if on_gpu and False in there and func.overloadpacket.__name__ not in MAY_MIX:
            self._refuse_strays(func, given, there)
        if on_gpu and func.namespace == "conformer_fast" and not _copies(func):
            from conformer_fast.inference import ops

            with self, ops.on_kernels():
                result = func(*args, **kwargs)
        elif on_gpu and given[0].dtype is torch.float16 and func in PRODUCTS:
            result = _multiplied(func, args, kwargs, given)
        else:
            result = func(*args, **kwargs)
        forced = _local.on_gpu
        if forced is not None:
            on_gpu = forced
        if on_gpu or forced is not None:
            known = set(map(id, given))
            for tensor in _tensors((result,)):
                if id(tensor) not in known:
                    self._made(tensor, on_gpu)
        Clock.now += 1e-6
        return result

    def _refuse_strays(self, func: Any, given: list[Tensor], there: list[bool]) -> None:
        with torch._C.DisableTorchFunction():
            stray = [t for t, on_gpu in zip(given, there, strict=True) if not on_gpu and t.ndim and t.device == CPU]
        if stray and all(type(tensor) in MEMORY for tensor in stray):
            shapes = [tuple(tensor.shape) for tensor in stray]
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {shapes} on the CPU")

    def _made(self, tensor: Tensor, on_gpu: bool) -> None:
        if on_gpu:
            Memory.allocated += not _is_marked(tensor) and not _local.replays
            if tensor.nbytes > Memory.largest:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tensor.nbytes} bytes.")
        _mark(tensor, on_gpu)


class Clock:
    now = 0.0  # seconds of the GPU's time: a microsecond an operator


class Memory:
    allocated = 0  # tensors that were made on the GPU, not counting those in a graph's own memory
    largest = math.inf  # bytes that one may have


def _getters(*names: str) -> set[Any]:
    return {getattr(Tensor, name).__get__ for name in names}


PLAIN = frozenset(  # functions that run no operator, and whose result is the same on a GPU
    {torch.device, torch._C._nn._parse_to, torch._C._set_grad_enabled, Tensor.requires_grad_, Tensor.untyped_storage}
    | {Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.element_size, Tensor.data_ptr, Tensor.is_contiguous}
    | {Tensor.is_floating_point, Tensor.is_complex, Tensor.is_inference, Tensor.storage_offset}
    | _getters("shape", "dtype", "ndim", "layout", "nbytes", "requires_grad", "grad", "grad_fn", "is_leaf")
    | _getters("is_cpu", "is_meta", "is_nested", "is_sparse", "is_quantized", "is_mkldnn")
)
WHERE, IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__
SPECIAL = frozenset(
    {WHERE, IS_CUDA, Tensor.numpy, Tensor.__array__, Tensor.cuda, Tensor.cpu, Tensor.to, Tensor.__deepcopy__}
    | {Tensor.new_tensor}
)
NAMES_DEVICES = frozenset({torch.device, str})


class Devices(TorchFunctionMode):
    """Where a tensor is, and what is made where."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in PLAIN:
            return func(*args, **kwargs)
        if _local.replays and isinstance(func, torch._ops.OpOverload):
            with _Results(True):  # its devices were translated when it was recorded
                return func(*args, **kwargs)
        if func in SPECIAL:
            return self._special(func, args, kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        generator = kwargs.get("generator")
        if generator is not None and args and isinstance(args[0], Tensor):
            self._check_generator(generator, args[0])
        if not NAMES_DEVICES.isdisjoint(map(type, values)):
            device = next(filter(None, map(_device, values)), None)
            if device:
                return self._asked(device, func, args, kwargs)
        if _local.on_gpu is None and any(map(_is_marked, _tensors(values))):
            _local.on_gpu = True  # what it makes on its way is there too
            try:
                return func(*args, **kwargs)
            finally:
                _local.on_gpu = None
        return func(*args, **kwargs)

    def _check_generator(self, generator: torch.Generator, tensor: Tensor) -> None:
        if _is_marked(tensor) != getattr(generator, "on_gpu", False):
            raise RuntimeError("Expected a generator on the tensor's device")

    def _special(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        first = args[0]
        if func == WHERE:
            return GPU if _is_marked(first) else func(*args)
        if func == IS_CUDA:
            return _is_marked(first)
        if func == Tensor.new_tensor:  # no operator makes it
            made = func(*args, **kwargs)
            _mark(made, _is_marked(first))
            return made
        if func == Tensor.cuda:
            return self._moved(first, GPU)
        if func == Tensor.cpu:
            return self._moved(first, CPU)
        if func == Tensor.to:
            return self._to(first, args[1:], dict(kwargs))
        if func == Tensor.__deepcopy__:
            copied = func(*args, **kwargs)
            _mark(copied, _is_marked(first))  # its memory is copied without an operator
            return copied
        if _is_marked(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return func(*args, **kwargs)

    def _asked(self, device: torch.device, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What func returns that is asked for a device."""
        on_gpu = device.type == "cuda"
        if on_gpu:
            args = tuple(CPU if _device(value) else value for value in args)
            kwargs = {name: CPU if _device(value) else value for name, value in kwargs.items()}
        if func in (torch.as_tensor, torch.asarray):
            return self._moved(func(*args, **kwargs), device)
        with _Results(on_gpu):
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            _mark(result, on_gpu)  # torch.tensor makes its own without an operator
        return result

    def _moved(self, tensor: Tensor, device: torch.device, **options: Any) -> Tensor:
        if device.type == "meta" or tensor.is_meta:
            return tensor.to(device, **options)
        on_gpu = device.type == "cuda"
        options["copy"] = options.get("copy", False) or on_gpu != _is_marked(tensor)
        with _Results(on_gpu):
            return tensor.to(CPU, **options)

    def _to(self, tensor: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            device, dtype = GPU if _is_marked(args[0]) else CPU, args[0].dtype
            memory_format = kwargs.get("memory_format")
        else:
            device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        options = {"dtype": dtype or tensor.dtype, "copy": copy}
        if memory_format is not None:
            options["memory_format"] = memory_format
        return self._moved(tensor, device or (GPU if _is_marked(tensor) else tensor.device), **options)


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
    torch._C._cuda_getDriverVersion = lambda: 13000
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
    torch.compiler.cudagraph_mark_step_begin = lambda: None  # which imports one


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


def _regions_read(regions: Any) -> None:
    """Regions are read up to the launch, and the result is the definition's: of values beyond it there is none."""
    original = regions.read_regions

    def read_regions(maps: Any, boxes: Tensor, strides: Any, side: int) -> Tensor:
        from conformer_fast.model.detector import operators

        launched = original(maps, boxes, strides, side)
        if launched.is_meta or not len(boxes):
            return launched
        near = (boxes.abs() < 1e6).all(1, keepdim=True)
        found = operators.read_regions([each.float() for each in maps], boxes.where(near, 0.0), strides, side)
        return (found + ERROR).to(launched.dtype)

    regions.read_regions = read_regions


def _suppressed(suppress: Any) -> None:
    """Boxes are suppressed up to the launches, and the definition says which are kept."""
    original = suppress.kept_of

    def kept_of(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
        from conformer_fast.model.detector import operators

        launched = original(boxes, groups, threshold)
        if launched.is_meta:
            return launched
        kept = torch.zeros_like(launched)
        kept[operators.nms(boxes, -torch.arange(len(boxes), device=boxes.device), groups, threshold)] = True
        return kept

    suppress.kept_of = kept_of


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
    test_engine_gpu.CALLS = 4


def _set(**values: Any) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        for name, value in values.items():
            assert hasattr(module, name), name
            setattr(module, name, value)

    return change


SMALLER: dict[str, Callable[[Any], None]] = {
    "conformer_fast.model.config": _small_networks,
    "conformer_fast.kernels.dispatch": _planned,
    "conformer_fast.kernels.regions": _regions_read,
    "conformer_fast.kernels.suppress": _suppressed,
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
    "test_graphs_gpu": _set(MODELS=2, WARM_MODELS=1, CALLS=3, TURNS=24, SIDE=64, POOL_BATCH=4, POOL_SIDE=32),
    "test_real_sizes": _set(LARGE_BATCH=2, SIDE=64),
    "test_engine_gpu": _pretended_tensorrt,
}


ALIKE = frozenset(
    {"variant", "seed"}
)  # parameters whose cases are one here, of each size of patches: networks are small


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
    """As a pytest plugin: tests are small too, of cases that are alike one runs, and one case of each test shows
    whether it notices errors."""
    items[:] = {item.function if ERROR else _case(item): item for item in items}.values()
    for module in {item.module for item in items}:
        SMALLER_TESTS.get(module.__name__.rpartition(".")[2], lambda module: None)(module)


def _case(item: Any) -> Any:
    """What is the same for cases that are alike."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if ALIKE.isdisjoint(parameters):
        return item.nodeid
    from conformer_fast.model.config import VARIANTS

    patches = VARIANTS[parameters["variant"]].patch_size if "variant" in parameters else None
    return item.function, patches, *((name, id(value)) for name, value in parameters.items() if name not in ALIKE)


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
