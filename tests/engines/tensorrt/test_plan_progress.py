"""A build's bar, and Ctrl-C, which stops it."""

import io
import signal
import sys

import pytest

pytest.importorskip("onnx")

from onnx import TensorProto
from plan_samples import FIXED, quantized_graph

from conformer_fast.engines.tensorrt import plan as builder_module
from conformer_fast.engines.tensorrt.plan import engine_from_onnx

pytestmark = pytest.mark.usefixtures("gpu")


class RecordingBar:
    """In place of Bar: the bar's position after each step; at_step is called at each."""

    def __init__(self, at_step=lambda: None) -> None:
        self.positions, self.names, self.at_step = [], [], at_step

    def __call__(self, what, total, **layout) -> "RecordingBar":
        self.n = 0.0
        return self

    def __enter__(self) -> "RecordingBar":
        return self

    def __exit__(self, *_) -> None:
        pass

    def update(self, more: float) -> None:
        self.n += more
        self.positions.append(self.n)
        self.at_step()

    def set_postfix_str(self, name: str, refresh: bool) -> None:
        self.names.append(name)


def test_the_bar_rises_through_all_phases(graph, rtx, monkeypatch):
    bar = RecordingBar()
    monkeypatch.setattr(builder_module, "Bar", bar)
    engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")
    assert bar.positions == sorted(bar.positions)
    assert len(set(bar.positions)) > 20
    assert 0.8 < bar.positions[-1] <= 1.0
    assert len(set(bar.names)) > 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)], ids=["terminal", "pipe"])
def test_the_bar_is_for_terminals(stream, shown, rtx, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    engine_from_onnx(quantized_graph(TensorProto.INT8), [FIXED], rtx, ["sm86"], "int8")
    assert ("building" in stream.getvalue()) == shown


@pytest.fixture
def ctrl_c():
    """Python's own handler, whatever other tests' libraries have left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c_once():
    pressed = []

    def press() -> None:
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)

    return press


def test_ctrl_c_cancels_the_build(graph, rtx, monkeypatch, capfd, ctrl_c):
    bar = RecordingBar(press_ctrl_c_once())
    monkeypatch.setattr(builder_module, "Bar", bar)
    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")
    assert len(bar.positions) == 1  # no step after it
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr() == ("", "")
    assert engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")  # the next build knows nothing of it


def test_ctrl_c_while_the_graph_is_read(graph, rtx, monkeypatch, ctrl_c):
    """No step has begun then: the first one ends the build."""
    bar, press = RecordingBar(), press_ctrl_c_once()

    def create_network(builder, flags):
        press()
        return original(builder, flags)

    original = rtx.module.Builder.create_network
    monkeypatch.setattr(builder_module, "Bar", bar)
    monkeypatch.setattr(rtx.module.Builder, "create_network", create_network)
    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")
    assert len(bar.positions) == 1


def test_a_program_keeps_its_own_handler(graph, rtx, monkeypatch):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("program"))
    try:
        monkeypatch.setattr(builder_module, "Bar", RecordingBar(press_ctrl_c_once()))
        assert engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["program"]
