"""What the tests of the TensorRT engine share, on a pretended TensorRT and a pretended torch.cuda."""

import threading
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from executor_samples import assert_same
from fake_tensorrt import TensorRT, expected, plan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_fast.engines.tensorrt.engine import TensorRTEngine

CPU = torch.device("cpu")
LOGITS = ("conv_logits", "trans_logits")


def engine_of(trt: TensorRT, names=LOGITS, cache=None, **changes) -> TensorRTEngine:
    return TensorRTEngine(plan(**changes), trt.flavor, names, CPU, cache)


def reference(batch: Tensor, outputs=LOGITS) -> list[Tensor]:
    results = expected(batch)
    return [results[name] for name in outputs]


def lanes(cuda) -> set[Hashable]:
    """The working memory that an engine has run in so far: as many as there were calls at the same time."""
    return {memory for memory in cuda.runs if memory[0] == "scratch"}


@contextmanager
def call_under_way(engine: TensorRTEngine, batch: Tensor) -> Iterator[None]:
    """Inside, another thread is in the middle of a call: its run is issued, its results are not copied yet."""
    issued, go_on = threading.Event(), threading.Event()

    class Stopping(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.clone.default:
                issued.set()
                assert go_on.wait(20)
            return func(*args, **(kwargs or {}))

    def call() -> tuple[Tensor, ...]:
        with Stopping():
            return engine(batch)

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(call)
        try:
            assert issued.wait(20)
            yield
        finally:
            go_on.set()
        assert_same(results.result(), reference(batch))
