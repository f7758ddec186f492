"""What the TensorRT engine says of plans and calls that fail, and that the next call runs."""

import gc
import warnings

import pytest
import torch
from executor_samples import assert_same, images
from fake_tensorrt import SCRATCH, TensorRT, plan
from tensorrt_samples import CPU, LOGITS, engine_of, reference
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_fast.engines.tensorrt.engine import TensorRTEngine
from conformer_fast.errors import EngineError


@pytest.mark.parametrize("content", [b"", b"garbage", plan()[:-5]], ids=["empty", "garbage", "cut"])
def test_plan_that_cannot_be_loaded(content, trt):
    with pytest.raises(EngineError) as caught:
        TensorRTEngine(content, trt.flavor, LOGITS, CPU)
    assert f"{trt.flavor} cannot load the plan of {len(content)} bytes on cpu; build it again" in str(caught.value)
    assert "header.magicTag == kEXPECTED_MAGIC_TAG" in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_load_that_raises(error, trt, monkeypatch):
    def fail(*_):
        raise error("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt.module, "Runtime", fail)
    with pytest.raises(EngineError, match="factory function returned nullptr"):
        engine_of(trt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": ["conv_logits"]}, "returns conv_logits; it should read images and return conv_logits, trans_log"),
        ({"inputs": ["images", "masks"]}, "reads images, masks and returns"),
        ({"inputs": ["x"]}, "the plan reads x and"),
        ({"dtype": "HALF"}, "the plan's sizes are DataType.HALF, not fp32"),
    ],
)
def test_plan_of_another_graph(changes, message, trt):
    with pytest.raises(EngineError, match=message):
        engine_of(trt, **changes)


class WorkingMemory(TorchDispatchMode):
    """Counts how often it is made, in this thread."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made += "empty" in str(func) and result.dtype == torch.uint8 and result.nbytes == SCRATCH
        return result


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("context", "made no execution context"),
        ("profile", "took no profile 0"),
        ("infer", r"does not know the shape of images for images of shape \(1, 3, 16, 16\)"),
        ("address", "took no address for images"),
        ("execute", "did not run"),
    ],
)
def test_what_tensorrt_refuses_is_said_with_its_log(call, message, trt, cuda, contexts):
    engine, batch = engine_of(trt), images(1, 3, 16, 16)
    trt.refuse[call] = "Error Code 7: the reason"
    memory = WorkingMemory()
    with memory, pytest.raises(EngineError, match=f"(?s){trt.flavor} {message}.*Error Code 7: the reason"):
        engine(batch)
    assert cuda.log[-1][0] in ("done", "wait on the host")
    gc.collect()
    assert not contexts  # one that was half prepared is not kept for the next call
    trt.refuse.clear()
    with memory, torch.cuda.stream(torch.cuda.Stream()):
        assert_same(engine(batch), reference(batch))
    assert memory.made == 1  # the failed call gave it back
    gc.collect()
    assert trt.freed_early == 0


@pytest.mark.parametrize("how", ["refused", "spoilt"])
def test_recording_that_fails(how, cuda):
    """A run that cannot be recorded is run as it is."""
    trt = TensorRT(cuda)
    engine, batch = engine_of(trt), images(1, 3, 16, 16)
    if how == "refused":
        trt.refuse["record"] = "operation not permitted when stream is capturing"
    cuda.spoilt = how == "spoilt"
    with pytest.warns(UserWarning, match=r"(?s)cannot be recorded as a CUDA graph.* runs without one"):
        assert_same(engine(batch), reference(batch))
    trt.refuse.clear()
    assert not torch.cuda.is_current_stream_capturing()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(engine(batch), reference(batch))
    gc.collect()
    assert cuda.graphs.total() == (how == "spoilt")  # PyTorch never frees what was spoilt
    assert trt.freed_early == 0


def test_other_errors_pass_as_they_are(trt):
    engine = engine_of(trt)
    with pytest.raises(RuntimeError, match="must match the size"):
        engine(images(1, 2, 16, 16))  # the caller's own check would not let this through
    assert_same(engine(images(1, 3, 16, 16)), reference(images(1, 3, 16, 16)))
