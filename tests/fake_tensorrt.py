"""TensorRT on the CPU, behind the pretended torch.cuda, so that engines/tensorrt/engine.py runs without a GPU.

A plan is JSON. Its engine reads and writes the memory at the addresses it is given, so that wrong ones are noticed.
What TensorRT refuses is refused here as it does: False or None, and the reason in the logger alone.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from fake_cuda import FakeCUDA
from torch import Tensor

from conformer_fast.engines.tensorrt.flavors import Flavor

OUTPUTS = ["conv_logits", "trans_logits", "sizes"]
SCRATCH = 4096  # bytes
PROFILES = [
    [(1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16)],
    [(1, 3, 16, 16), (8, 3, 24, 24), (12, 3, 32, 32)],
]


def plan(profiles: Sequence = PROFILES, **changes: Any) -> bytes:
    fields = {"profiles": profiles, "inputs": ["images"], "outputs": OUTPUTS, "dtype": "FLOAT", **changes}
    return json.dumps(fields).encode()


def expected(images: Tensor) -> dict[str, Tensor]:
    """What the engine computes: sums over images, two logits an image, and maps of the images' own size."""
    images = images.float()
    sums = images.sum((1, 2, 3))
    return {
        "conv_logits": torch.stack([sums, 2 * sums], 1),
        "trans_logits": torch.stack([-sums, sums], 1),
        "sizes": images[:, :1] * 3,
    }


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class TensorRT:
    """A pretended installation. What to fail at next, and what happened.

    refuse:      name of a call -> the message with which it fails
    runs:        shape and stream of each
    contexts:    how each was made
    freed_early: contexts that went while the GPU may still have worked with them
    moved:       runs at which a context's shape or addresses had changed
    """

    def __init__(self, cuda: FakeCUDA, name: str = "tensorrt") -> None:
        self.cuda, self.rtx = cuda, name == "tensorrt-rtx"
        self.refuse: dict[str, str] = {}
        self.runs: list[tuple[tuple[int, ...], Any]] = []
        self.contexts: list[Any] = []
        self.freed_early = self.moved = 0
        self.module = SimpleNamespace(
            ILogger=ILogger,
            DataType=DataType,
            TensorIOMode=TensorIOMode,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
            Runtime=lambda logger: Runtime(self, logger),
        )
        self.flavor = Flavor(name, self.module, "1.7.1" if self.rtx else "11.0.0")

    def fails(self, call: str, logger: Any) -> bool:
        if call in self.refuse:
            logger.log(Severity.ERROR, self.refuse[call])
        return call in self.refuse


class Runtime:
    def __init__(self, trt: TensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        if self.trt.fails("deserialize", self.logger):
            return None
        try:
            return Engine(self.trt, self.logger, json.loads(content))
        except ValueError:
            self.logger.log(Severity.ERROR, "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None


class Engine:
    device_memory_size_v2 = SCRATCH

    def __init__(self, trt: TensorRT, logger: Any, fields: dict) -> None:
        self.trt, self.logger, self.fields = trt, logger, fields
        self._names = [*fields["inputs"], *fields["outputs"]]
        self.num_io_tensors, self.num_optimization_profiles = len(self._names), len(fields["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.fields["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.fields["dtype"]] if name == self._names[-1] else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1, 3, -1, -1] if name == "images" else [-1, 2]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        assert name == "images"
        return self.fields["profiles"][index]

    def create_runtime_config(self) -> RuntimeConfig | None:
        assert self.trt.rtx
        return None if self.trt.fails("config", self.logger) else RuntimeConfig(self.trt, self.logger)

    def create_execution_context(self, how: Any) -> Context | None:
        if self.trt.fails("context", self.logger):
            return None
        return Context(self, how)


class RuntimeConfig:
    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = strategy = "default"

    def __init__(self, trt: TensorRT, logger: Any) -> None:
        self.trt, self.logger, self.cache = trt, logger, None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return not self.trt.fails("set cache", self.logger)


class RuntimeCache:
    """Names of kernels, of the GPU "here"."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps({"gpu": "here", "kernels": sorted(self.kernels)}).encode()

    def deserialize(self, content: bytes) -> bool:
        fields = json.loads(content)
        if fields["gpu"] == "here":
            self.kernels |= set(fields["kernels"])
        return fields["gpu"] == "here"


class Context:
    """Refuses to run half prepared, or to be recorded before it has run what it was set to."""

    numbers = itertools.count()

    def __init__(self, engine: Engine, how: Any) -> None:
        self.engine, self.trt, self.cuda = engine, engine.trt, engine.trt.cuda
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.last_run: dict | None = None
        self.profile: list | None = None
        self.scratch = self.stream = 0
        self.itself = "context", next(self.numbers)  # memory of its own
        self.cache = how.cache if self.trt.rtx else None
        if self.trt.rtx:
            how = how.strategy, how.cuda_graph_strategy, how.dynamic_shapes_kernel_specialization_strategy
        self.trt.contexts.append(how)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH
        self.scratch = address

    def set_optimization_profile_async(self, index: int, handle: int) -> bool:
        self.profile, self.stream = self.engine.fields["profiles"][index], handle
        return not self.trt.fails("profile", self.engine.logger)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        assert self.profile
        smallest, _, largest = self.profile
        self.shape = shape
        return all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))

    def infer_shapes(self) -> list[str]:
        return ["images"] if self.trt.fails("infer", self.engine.logger) else []

    def get_tensor_shape(self, name: str) -> list[int]:
        assert self.shape
        B, _, H, W = self.shape
        return [B, 1, H, W] if name == "sizes" else [B, 2]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return not self.trt.fails("address", self.engine.logger)

    def execute_async_v3(self, handle: int) -> bool:
        stream = self.cuda.handles[handle]
        assert stream is self.cuda.stream  # so that PyTorch knows what records
        assert handle == self.stream  # that the profile was switched on
        assert set(self.addresses) == {"images", *self.engine.fields["outputs"]}
        recording = stream.recording is not None
        settled = {"shape": self.shape, **self.addresses}
        if self.trt.fails("record" if recording else "execute", self.engine.logger):
            return False
        if recording and settled != self.last_run:
            self.engine.logger.log(Severity.ERROR, "operation not permitted when stream is capturing")
            return False
        self.trt.moved += self.last_run is not None and settled != self.last_run
        self.last_run = settled
        if self.cache is not None:
            self.cache.kernels.add(str(self.shape))
        self.cuda.work_in([("scratch", self.scratch), self.itself], stream)
        self.trt.runs.append((self.shape, stream))
        try:
            results = expected(self._at("images", self.shape))
            for name in self.engine.fields["outputs"]:
                self._at(name, self.get_tensor_shape(name)).copy_(results[name])
        except torch.OutOfMemoryError:
            self.engine.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory")
            return False
        return True

    def _at(self, name: str, shape: Any) -> Tensor:
        """The memory at a tensor's address."""
        memory = (ctypes.c_float * math.prod(shape)).from_address(self.addresses[name])
        return torch.frombuffer(memory, dtype=torch.float32).view(*shape)

    def __del__(self) -> None:
        self.trt.freed_early += self.cuda.finished[self.itself] < self.cuda.runs[self.itself]
