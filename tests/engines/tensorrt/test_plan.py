"""The builder: real engines by TensorRT-RTX, which needs no GPU; the code for TensorRT on a pretended module of it."""

import gc
import io
import signal
import sys
import threading
import warnings
import weakref
from enum import IntEnum
from importlib import import_module
from types import ModuleType

import lookalikes
import numpy as np
import pytest
import torch

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper

from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.tensorrt import plan as builder_module
from conformer_fast.engines.tensorrt import timing_cache
from conformer_fast.engines.tensorrt.flavors import Flavor, Log, get_flavor
from conformer_fast.engines.tensorrt.plan import check_options, engine_from_onnx, targets_of
from conformer_fast.errors import BackendError, EngineError
from conformer_fast.inference.lower import lower
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Shapes

FIXED = Shapes((1, 1, 1), (64, 64, 64), (64, 64, 64))
DYNAMIC = Shapes((1, 2, 4), (32, 64, 224), (48, 64, 224))


@pytest.fixture(autouse=True)
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
    pytest.importorskip("tensorrt_rtx_bindings")
    return get_flavor("tensorrt-rtx")


@pytest.fixture(scope="module")
def graph(small_config) -> bytes:
    """The small model as a fp32 ONNX graph."""
    model = lookalikes.fill(Conformer(small_config)).eval()
    return onnx_from_model(lower(model)).SerializeToString()


def quantized_graph(dtype: int) -> bytes:
    """One 8-bit convolution."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
    constants = [
        helper.make_tensor("zero", dtype, [], [0]),
        helper.make_tensor("zeros", dtype, [16], [0] * 16),
        numpy_helper.from_array(np.float32(0.05), "scale"),
        numpy_helper.from_array(np.full(16, 0.01, np.float32), "scales"),
        numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "weight"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("QuantizeLinear", ["weight", "scales", "zeros"], ["qw"], axis=0),
        helper.make_node("DequantizeLinear", ["qw", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["result"]),
    ]
    made = helper.make_graph(nodes, "quantized", [images], [result], constants)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def is_a_plan(flavor: Flavor, plan: bytes) -> bool:
    """As far as TensorRT-RTX can tell without a GPU, from the header."""
    log = Log(flavor)
    diagnostics = flavor.module.Runtime(log.logger).get_engine_validity(plan)[1]
    return not diagnostics & int(flavor.module.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


TARGETS = {"one": ["sm86"], "capitals": ["SM120"], "several": ["sm80", "sm86", "sm89", "sm120"]}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_builds_without_a_gpu(targets, graph, rtx, capfd):
    plan = engine_from_onnx(graph, [FIXED], rtx, targets, "fp32")
    assert capfd.readouterr() == ("", "")
    assert type(plan) is bytes
    assert len(plan) > len(graph)  # the weights are inside
    assert is_a_plan(rtx, plan)
    assert not is_a_plan(rtx, graph)


def test_builds_for_dynamic_shapes_and_several_profiles(graph, rtx):
    one = engine_from_onnx(graph, [DYNAMIC], rtx, ["sm86"], "fp32")
    two = engine_from_onnx(graph, [DYNAMIC, FIXED], rtx, ["sm86"], "fp32")
    assert is_a_plan(rtx, two)
    assert len(two) > len(one)


@pytest.mark.parametrize(("dtype", "precision"), [(TensorProto.INT8, "int8"), (TensorProto.FLOAT8E4M3FN, "fp8")])
def test_builds_quantized_graphs(dtype, precision, rtx):
    plan = engine_from_onnx(quantized_graph(dtype), [DYNAMIC], rtx, ["sm89", "sm120"], precision)
    assert is_a_plan(rtx, plan)


def test_repeated_targets_count_once(rtx):
    sizes = {
        len(engine_from_onnx(quantized_graph(TensorProto.INT8), [FIXED], rtx, targets, "int8"))
        for targets in (["sm86"], ["sm86", "SM86", "sm86"])
    }
    assert len(sizes) == 1


def altered(graph: bytes, change) -> bytes:
    model = onnx.load_model_from_string(graph)
    change(model.graph.node)
    return model.SerializeToString()


def rename_an_operator(nodes) -> None:
    nodes[10].op_type = "NoSuchOperator"


def cut_a_wire(nodes) -> None:
    nodes[20].input[0] = "nowhere"


BROKEN = {
    "unknown operator": (lambda graph: altered(graph, rename_an_operator), "node 10 .*NoSuchOperator"),
    "input from nowhere": (lambda graph: altered(graph, cut_a_wire), "node 20 .*Node input was not registered"),
    "truncated": (lambda graph: graph[: len(graph) // 2], "Failed to parse the ONNX model"),
    "garbage": (lambda graph: b"garbage" * 100, "Failed to parse the ONNX model"),
    "empty": (lambda graph: b"", "must have one input, it has 0"),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_graph_is_refused_with_the_reason(damage, reason, graph, rtx):
    with pytest.raises(EngineError, match=rf"^TensorRT-RTX .* built no engine: .*{reason}"):
        engine_from_onnx(damage(graph), [FIXED], rtx, ["sm86"], "fp32")


def test_what_the_build_itself_refuses_comes_with_the_log(rtx):
    with pytest.raises(EngineError, match=r"(?s)the build failed; the log .*\[ERROR\].*sm86.*fp8_e4m3"):
        engine_from_onnx(quantized_graph(TensorProto.FLOAT8E4M3FN), [FIXED], rtx, ["sm86", "sm89"], "int8")


def test_graph_with_two_inputs_is_refused(graph, rtx):
    model = onnx.load_model_from_string(graph)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(EngineError, match="must have one input, it has 2"):
        engine_from_onnx(model.SerializeToString(), [FIXED], rtx, ["sm86"], "fp32")


REFUSED = {
    "fp8 on Ampere": (["sm80"], "fp8", BackendError, "'fp8' needs sm89 or newer .* run on sm80; choose other targets"),
    "fp8 on one of several": (["sm120", "sm86"], "fp8", BackendError, "run on sm86;"),
    "bf16 on Turing": (["sm75"], "bf16", BackendError, "'bf16' needs sm80 or newer .* run on sm75"),
    "fp32 on Turing": (["sm75"], "fp32", BackendError, "'fp32' needs sm80 or newer with TensorRT-RTX"),
    "fp16 on Turing": (["sm75", "sm86"], "fp16", BackendError, "'fp16' needs sm80 or newer"),
    "Hopper": (["sm90"], "fp16", BackendError, r"cannot build for sm90; it can for sm75, sm80, .*sm120"),
    "nothing named": ([], "fp16", BackendError, r"no CUDA GPU here .* give --target .* sm75, sm80"),
    "a dot": (["8.6"], "fp16", ValueError, r"written like \"sm86\" for 8.6, got '8.6'"),
    "another prefix": (["compute_86"], "fp16", ValueError, "got 'compute_86'"),
    "CURRENT": (["current"], "fp16", ValueError, "got 'current'"),
    "empty": ([""], "fp16", ValueError, "got ''"),
    "unknown precision": (["sm86"], "fp4", ValueError, "unknown precision 'fp4'; choose one of fp32, bf16"),
}


@pytest.mark.parametrize(("targets", "precision", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_the_build(targets, precision, error, message, rtx, monkeypatch):
    monkeypatch.delattr(rtx.module, "Builder")
    with pytest.raises(error, match=message):
        check_options(rtx, targets, precision)
    with pytest.raises(error, match=message):
        engine_from_onnx(b"", [FIXED], rtx, targets, precision)


def test_a_build_without_profiles_is_refused(graph, rtx):
    with pytest.raises(ValueError, match="needs the shapes"):
        engine_from_onnx(graph, [], rtx, ["sm86"], "fp32")


def test_targets_of_an_engine(rtx, gpu):
    assert targets_of(rtx, ["SM120", "sm86", "Sm86"]) == ("sm86", "sm120")
    gpu((8, 9))
    assert targets_of(rtx) == ("sm89",)
    assert targets_of(rtx, ["sm86"]) == ("sm86",)
    gpu((9, 0))
    assert targets_of(rtx) == ("sm90",)  # whether it builds there is for TensorRT-RTX to say


class RecordingBar:
    """In place of tqdm: the bar's position after each step; at_step is called at each."""

    def __init__(self, at_step=lambda: None) -> None:
        self.positions, self.names, self.at_step = [], [], at_step

    def __call__(self, **options) -> "RecordingBar":
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
    monkeypatch.setattr(builder_module, "tqdm", bar)
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
    monkeypatch.setattr(builder_module, "tqdm", bar)
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
    monkeypatch.setattr(builder_module, "tqdm", bar)
    monkeypatch.setattr(rtx.module.Builder, "create_network", create_network)
    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")
    assert len(bar.positions) == 1


def test_a_program_keeps_its_own_handler(graph, rtx, monkeypatch):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("program"))
    try:
        monkeypatch.setattr(builder_module, "tqdm", RecordingBar(press_ctrl_c_once()))
        assert engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["program"]


def test_builds_in_a_thread(graph, rtx):
    plans = []
    thread = threading.Thread(target=lambda: plans.append(engine_from_onnx(graph, [FIXED], rtx, ["sm86"], "fp32")))
    thread.start()
    thread.join(60)
    assert is_a_plan(rtx, plans[0])


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class FakeTensorRT(ModuleType):
    """As much of TensorRT's module as a build may touch; anything else, such as a builder flag, does not exist.

    calls:  what was asked of it, in order
    fails:  "builder", "parse", "profile", "target" or "build"
    living: its objects that are still alive
    """

    def __init__(self, name: str, fails: str = "") -> None:
        super().__init__(name)
        self.calls, self.fails = [], fails
        self.living = weakref.WeakSet()
        fake = self

        class Alive:
            __slots__ = ("__weakref__",)

            def __init__(self) -> None:
                fake.living.add(self)

        class ILogger:
            pass

        class Runtime:
            def __init__(self, logger) -> None:
                pass

        class IProgressMonitor:
            pass

        class Builder(Alive):
            def __init__(self, logger) -> None:
                super().__init__()
                self.logger = logger
                if fake.fails == "builder":
                    raise TypeError("pybind11::init(): factory function returned nullptr")

            def create_network(self, flags):
                fake.calls.append(("network", flags))
                return Network()

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return Shapes()

            def build_serialized_network(self, network, config):
                fake.calls.append(("build", len(config.profiles)))
                monitor = config.progress_monitor
                monitor.phase_start("all", None, 2)
                assert monitor.step_complete("all", 0) is True
                monitor.phase_finish("all")
                self.logger.log(Severity.INFO, "building")
                if fake.fails == "build":
                    self.logger.log(Severity.ERROR, "no tactic is left")
                    return None
                config.timings.lines.add(b"measured")
                return bytearray(b"plan")

        class Network(Alive):
            num_inputs = 1

            def get_input(self, index):
                tensor = ModuleType("tensor")
                tensor.name, tensor.shape = "images", (-1, 3, -1, -1)
                return tensor

        class OnnxParser(Alive):
            num_errors = 2

            def __init__(self, network, logger) -> None:
                super().__init__()
                self.network = network

            def parse(self, onnx) -> bool:
                return fake.fails != "parse"

            def get_error(self, index):
                return ("node 3 is odd", "node 4 is odder")[index]

        class Shapes(Alive):
            def set_shape(self, name, smallest, tuned, largest) -> None:
                fake.calls.append((name, smallest, tuned, largest))

        class Timings(Alive):
            def __init__(self, content: bytes) -> None:
                super().__init__()
                self.lines = set(content.split()) if content else set()

            def combine(self, other, ignore_mismatch) -> bool:
                self.lines |= other.lines
                return True

            def serialize(self) -> bytes:
                return b" ".join(sorted(self.lines))

        class Config(Alive):
            __slots__ = ("num_compute_capabilities", "profiles", "progress_monitor", "timings")

            def __init__(self) -> None:
                super().__init__()
                self.profiles, self.timings = [], Timings(b"")

            def clear_flag(self, flag) -> None:
                fake.calls.append(f"{flag.name} is off")

            def add_optimization_profile(self, shapes) -> int:
                self.profiles.append(shapes)
                return -1 if fake.fails == "profile" else len(self.profiles) - 1

            def create_timing_cache(self, content):
                return Timings(content)

            def set_timing_cache(self, cache, ignore_mismatch) -> bool:
                fake.calls.append(("timings", sorted(cache.lines)))
                self.timings = cache
                return True

            def set_compute_capability(self, wanted, index) -> bool:
                fake.calls.append((wanted.name, index, self.num_compute_capabilities))
                return fake.fails != "target"

        ILogger.Severity = Severity
        self.Runtime, self.ILogger, self.IProgressMonitor = Runtime, ILogger, IProgressMonitor
        self.Builder, self.OnnxParser = Builder, OnnxParser
        self.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
        self.BuilderFlag = IntEnum("BuilderFlag", {"TF32": 7})
        self.ComputeCapability = IntEnum("ComputeCapability", {"CURRENT": 1, "SM75": 75, "SM86": 86, "SM120": 120})


def pretended(version: str = "10.13.0", fails: str = "", name: str = "tensorrt") -> Flavor:
    return Flavor(name, FakeTensorRT(name, fails), version)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("version", "flags"), [("10.12.0", 2), ("10.13.3.9", 2), ("11.0.0", 0), ("11.4.1", 0)])
def test_tensorrt_builds_for_the_gpu_here(version, flags, gpu, own_cache):
    gpu((8, 6))
    flavor = pretended(version)
    assert engine_from_onnx(b"graph", [DYNAMIC, FIXED], flavor) == b"plan"
    assert flavor.module.calls == [
        ("network", flags),
        "TF32 is off",
        ("images", (1, 3, 32, 48), (2, 3, 64, 64), (4, 3, 224, 224)),
        ("images", (1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64)),
        ("timings", []),
        ("build", 2),
    ]


def test_timings_go_from_build_to_build(gpu, own_cache):
    gpu((8, 6))
    for known in ([], [b"measured"]):
        flavor = pretended()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine_from_onnx(b"graph", [FIXED], flavor)
        assert ("timings", known) in flavor.module.calls
    assert timing_cache.file_for(flavor).read_bytes() == b"measured"


def test_a_build_that_failed_keeps_no_timings(gpu, own_cache):
    gpu((8, 6))
    flavor = pretended(fails="build")
    with pytest.raises(EngineError):
        engine_from_onnx(b"graph", [FIXED], flavor)
    assert not timing_cache.file_for(flavor).exists()


FAILURES = {
    "builder": r".*factory function returned nullptr; TensorRT's logger said nothing",
    "parse": r"node 3 is odd; node 4 is odder",
    "profile": r"Shapes\(batch=\(1, 1, 1\), .* was refused",
    "build": r"the build failed; the log of TensorRT ends with\n\[ERROR\] no tactic is left$",
}


@pytest.mark.parametrize(("fails", "message"), FAILURES.items(), ids=FAILURES)
def test_a_failure_is_told_and_leaves_nothing_behind(fails, message, gpu, own_cache):
    gpu((8, 6))
    flavor = pretended(fails=fails)
    with pytest.raises(EngineError, match=f"^TensorRT 10.13.0 built no engine: {message}") as caught:
        engine_from_onnx(b"graph", [FIXED], flavor)
    gc.collect()
    assert caught.value.__traceback__ is not None
    assert list(flavor.module.living) == []


def test_a_build_leaves_nothing_behind(gpu, own_cache):
    gpu((8, 6))
    flavor = pretended()
    engine_from_onnx(b"graph", [FIXED], flavor)
    gc.collect()
    assert list(flavor.module.living) == []


NOT_FOR_TENSORRT = {
    "no GPU": (None, [], "fp16", "TensorRT 10.13.0 builds on the GPU .* no CUDA GPU here; TensorRT-RTX builds without"),
    "no GPU, a target": (None, ["sm86"], "fp16", "no CUDA GPU here; TensorRT-RTX builds without one"),
    "a target": ((8, 6), ["sm89"], "fp16", r"GPU of this machine only \(sm86\), not for sm89; leave the targets out"),
    "the GPU here as a target": ((8, 6), ["sm86"], "fp16", r"only \(sm86\), not for sm86; leave the targets out"),
    "fp8 on Ampere": ((8, 6), [], "fp8", "'fp8' needs sm89 or newer with TensorRT 10.13.0, .* run on sm86"),
    "bf16 on Turing": ((7, 5), [], "bf16", "'bf16' needs sm80 or newer"),
}


@pytest.mark.parametrize(("found", "targets", "precision", "message"), NOT_FOR_TENSORRT.values(), ids=NOT_FOR_TENSORRT)
def test_what_tensorrt_cannot_do_is_refused_before_the_build(found, targets, precision, message, gpu):
    gpu(found)
    flavor = pretended()
    with pytest.raises(BackendError, match=message):
        check_options(flavor, targets, precision)
    with pytest.raises(BackendError, match=message):
        engine_from_onnx(b"graph", [FIXED], flavor, targets, precision)
    assert flavor.module.calls == []


@pytest.mark.parametrize(
    ("found", "precision"), [((7, 5), "fp32"), ((7, 5), "int8"), ((8, 0), "bf16"), ((8, 9), "fp8"), ((12, 0), "fp8")]
)
def test_what_tensorrt_can_do_on_a_gpu(found, precision, gpu):
    gpu(found)
    check_options(pretended(), [], precision)


def test_targets_are_set_by_age_and_once(own_cache):
    flavor = pretended("1.7.1", name="tensorrt-rtx")
    engine_from_onnx(b"graph", [FIXED], flavor, ["sm120", "SM86", "sm120"], "fp16")
    assert flavor.module.calls[3:-1] == [("SM86", 0, 2), ("SM120", 1, 2)]


def test_tensorrt_rtx_without_targets_builds_for_the_gpu_here(gpu, own_cache):
    gpu((8, 6))
    flavor = pretended("1.7.1", name="tensorrt-rtx")
    engine_from_onnx(b"graph", [FIXED], flavor)
    assert flavor.module.calls[3:-1] == [("CURRENT", 0, 1)]


def test_a_target_that_is_refused_after_all():
    flavor = pretended("1.7.1", "target", "tensorrt-rtx")
    with pytest.raises(EngineError, match="compute capability SM86 was refused"):
        engine_from_onnx(b"graph", [FIXED], flavor, ["sm86"])


def test_nothing_of_tensorrt_is_needed_to_import_the_builder():
    assert import_module("conformer_fast.engines.tensorrt.plan") is builder_module
    assert "tensorrt" not in sys.modules
