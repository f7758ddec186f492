"""What the tests of TensorRT share: a pretended runtime for engines, a real or a pretended machine for builds."""

import gc
from weakref import WeakSet

import fake_tensorrt
import lookalikes
import pytest
import torch
from fake_cuda import fake_cuda
from fake_tensorrt import TensorRT

from conformer_fast.engines.tensorrt.flavors import Flavor, get_flavor
from conformer_fast.inference.lower import lower
from conformer_fast.model.reference import Conformer


@pytest.fixture
def cuda(_quick_collections):
    with fake_cuda() as pretended:
        yield pretended
        gc.collect()  # engines that an error's traceback kept would outlive the pretence


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def trt(request, cuda) -> TensorRT:
    return TensorRT(cuda, request.param)


@pytest.fixture
def contexts(monkeypatch) -> WeakSet[fake_tensorrt.Context]:
    """The execution contexts that are alive."""
    alive: WeakSet[fake_tensorrt.Context] = WeakSet()
    make = fake_tensorrt.Engine.create_execution_context

    def made(engine, how):
        context = make(engine, how)
        if context is not None:
            alive.add(context)
        return context

    monkeypatch.setattr(fake_tensorrt.Engine, "create_execution_context", made)
    return alive


@pytest.fixture
def gpu(monkeypatch):
    """There is no GPU; gpu((8, 6)) pretends that there is one."""

    def pretend(found: tuple[int, int] | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: found is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: found)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "pretended")
        monkeypatch.setattr(torch.version, "hip", None)

    pretend(None)
    return pretend


@pytest.fixture
def rtx() -> Flavor:
    """The real TensorRT-RTX, which builds without a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings")
    return get_flavor("tensorrt-rtx")


@pytest.fixture(scope="session")
def graph(small_config) -> bytes:
    """The small model as a fp32 ONNX graph."""
    from conformer_fast.engines.onnx.export import onnx_from_model

    model = lookalikes.fill(Conformer(small_config)).eval()
    return onnx_from_model(lower(model)).SerializeToString()
