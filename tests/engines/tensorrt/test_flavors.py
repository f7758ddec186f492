"""The adapter: which TensorRT is taken, what differs between them, what is kept of their logs."""

import sys
import threading
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from conformer_fast.engines.tensorrt import flavors
from conformer_fast.engines.tensorrt.flavors import Flavor, Log, capability, get_flavor, gpu_target
from conformer_fast.errors import BackendError, EngineError


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class ComputeCapability(IntEnum):
    NONE, CURRENT, SM120, SM75, SM86 = 0, 1, 120, 75, 86


def module(name: str, version: str) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.__version__ = version
    made.ILogger, made.Runtime = ILogger, lambda logger: object()
    made.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    made.ComputeCapability = ComputeCapability
    return made


@pytest.fixture
def install(monkeypatch):
    """install(tensorrt="10.13.0", ...) makes exactly these modules importable, in pretended versions."""

    def replace(**versions: str) -> None:
        for name in (name for names in flavors.MODULES.values() for name in names):
            version = versions.get(name)
            monkeypatch.setitem(sys.modules, name, module(name, version) if version else None)
        monkeypatch.setattr(flavors, "find_spec", lambda name: versions.get(name))

    return replace


@pytest.fixture
def gpu(monkeypatch):
    """gpu((8, 6)) pretends that there is such a GPU, gpu(None) that there is none."""

    def pretend(found: tuple[int, int] | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: found is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: found)
        monkeypatch.setattr(torch.version, "hip", None)

    return pretend


TRT, RTX, BINDINGS = {"tensorrt": "10.13.0"}, {"tensorrt_rtx": "1.7.0"}, {"tensorrt_rtx_bindings": "1.8.0"}


@pytest.mark.parametrize(
    ("asked", "installed", "found", "taken"),
    [
        ("auto", TRT | RTX, (8, 6), "tensorrt"),
        ("auto", TRT, (8, 6), "tensorrt"),
        ("auto", TRT | RTX, None, "tensorrt_rtx"),
        ("auto", RTX, (8, 6), "tensorrt_rtx"),
        ("auto", BINDINGS, None, "tensorrt_rtx_bindings"),
        ("tensorrt", TRT | RTX, None, "tensorrt"),
        ("tensorrt-rtx", TRT | RTX | BINDINGS, (8, 6), "tensorrt_rtx"),
        ("tensorrt-rtx", TRT | BINDINGS, (8, 6), "tensorrt_rtx_bindings"),
    ],
)
def test_which_is_taken(asked, installed, found, taken, install, gpu):
    install(**installed)
    gpu(found)
    flavor = get_flavor(asked)
    assert flavor.module.__name__ == taken
    assert flavor.version == installed[taken]
    assert flavor.name == ("tensorrt" if taken == "tensorrt" else "tensorrt-rtx")


MISSING_TRT = 'TensorRT is not installed: pip install "conformer-fast[tensorrt]"'
MISSING_RTX = 'TensorRT-RTX is not installed: pip install "conformer-fast[tensorrt-rtx]"'


@pytest.mark.parametrize(
    ("asked", "installed", "message"),
    [
        ("auto", {}, MISSING_TRT + ', or "conformer-fast[tensorrt-rtx]" to build without a GPU'),
        ("auto", TRT, MISSING_RTX),
        ("tensorrt", RTX, MISSING_TRT),
        ("tensorrt-rtx", TRT, MISSING_RTX),
    ],
)
def test_missing_ones_are_named_with_the_command(asked, installed, message, install, gpu):
    install(**installed)
    gpu(None)
    with pytest.raises(BackendError) as caught:
        get_flavor(asked)
    assert str(caught.value) == message


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown flavor 'rtx'; choose one of auto, tensorrt, tensorrt-"):
        get_flavor("rtx")


@pytest.mark.parametrize(
    ("name", "installed", "needed"),
    [
        ("tensorrt", {"tensorrt": "10.11.9"}, "10.12"),
        ("tensorrt", {"tensorrt": "8.6.1.post1"}, "10.12"),
        ("tensorrt-rtx", {"tensorrt_rtx": "1.6.2.1"}, "1.7"),
    ],
)
def test_old_ones_are_refused(name, installed, needed, install):
    install(**installed)
    (version,) = installed.values()
    with pytest.raises(
        BackendError, match=rf"{version} is too old, {needed} or newer is needed: pip install --upgrade"
    ):
        get_flavor(name)


@pytest.mark.parametrize("version", ["10.12.0", "10.12.0.36", "10.100.0", "11.0.0", "11.4.1.post1"])
def test_new_ones_are_not(version, install):
    install(tensorrt=version)
    assert get_flavor("tensorrt").version == version


@pytest.mark.parametrize("error", [ImportError("no bindings"), OSError("libnvinfer.so.10: cannot open")], ids=str)
def test_one_that_cannot_be_imported(error, install, monkeypatch):
    def fail(name):
        raise error

    install(tensorrt="10.13.0")
    monkeypatch.setattr(flavors, "import_module", fail)
    with pytest.raises(BackendError, match=f"TensorRT is installed but cannot be imported: {error}"):
        get_flavor("tensorrt")


def flavor(name: str, version: str) -> Flavor:
    return Flavor(name, module(name, version), version)


TENSORRT_10, TENSORRT_11, TENSORRT_RTX = (
    flavor("tensorrt", "10.13.3.9"),
    flavor("tensorrt", "11.0.1"),
    flavor("tensorrt-rtx", "1.7.1.116"),
)


def test_only_tensorrt_10_is_told_that_types_are_strong():
    assert [each.network_flags for each in (TENSORRT_10, TENSORRT_11, TENSORRT_RTX)] == [1 << 1, 0, 0]


def test_targets_are_those_of_the_module_the_oldest_first():
    assert TENSORRT_RTX.targets == ("sm86", "sm120")  # not sm75, which runs none of our graphs
    assert TENSORRT_10.targets == TENSORRT_11.targets == ()


@pytest.mark.parametrize(
    ("property_name", "expected"),
    [
        ("builds_without_gpu", True),
        ("has_runtime_cache", True),
        ("captures_graphs_itself", True),
        ("has_timing_cache", False),
    ],
)
def test_what_only_one_of_them_has(property_name, expected):
    assert getattr(TENSORRT_RTX, property_name) is expected
    assert getattr(TENSORRT_10, property_name) is getattr(TENSORRT_11, property_name) is (not expected)


def test_names_for_people():
    assert [str(each) for each in (TENSORRT_10, TENSORRT_RTX)] == ["TensorRT 10.13.3.9", "TensorRT-RTX 1.7.1.116"]


@pytest.mark.parametrize(("found", "name"), [(None, None), ((8, 6), "sm86"), ((9, 0), "sm90"), ((12, 0), "sm120")])
def test_the_gpu_here(found, name, gpu):
    gpu(found)
    assert gpu_target() == name


def test_an_amd_gpu_is_none(gpu, monkeypatch):
    gpu((9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert gpu_target() is None


def test_targets_compare_by_their_number():
    assert sorted(["sm120", "sm75", "sm86"], key=capability) == ["sm75", "sm86", "sm120"]


def test_log_keeps_warnings_and_worse():
    log = Log(TENSORRT_10)
    for severity in Severity:
        log.logger.log(severity, f"this is {severity.name}")
    assert list(log.messages) == [
        ("INTERNAL_ERROR", "this is INTERNAL_ERROR"),
        ("ERROR", "this is ERROR"),
        ("WARNING", "this is WARNING"),
    ]
    assert log.tail().splitlines()[1:] == ["[ERROR] this is ERROR", "[WARNING] this is WARNING"]


def test_log_keeps_the_last_of_many():
    log = Log(TENSORRT_10)
    for number in range(1000):
        log.logger.log(Severity.WARNING, str(number))
    assert len(log.messages) == flavors.MESSAGES_KEPT
    assert log.tail().splitlines()[-1] == "[WARNING] 999"


def test_logs_are_apart():
    first, second = Log(TENSORRT_10), Log(TENSORRT_10)
    first.logger.log(Severity.ERROR, "mine")
    assert second.tail() == ""


def test_error_carries_the_log():
    log = Log(TENSORRT_10)
    assert str(log.error("it failed")) == "it failed; TensorRT's logger said nothing"
    log.logger.log(Severity.ERROR, "out of tactics")
    error = log.error("it failed")
    assert isinstance(error, EngineError)
    assert str(error) == "it failed; the log of TensorRT ends with\n[ERROR] out of tactics"


@pytest.fixture
def rtx() -> Flavor:
    pytest.importorskip("tensorrt_rtx_bindings")
    return get_flavor("tensorrt-rtx")


def test_the_real_tensorrt_rtx(rtx):
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(rtx.targets)
    assert rtx.version == rtx.module.__version__
    assert list(rtx.targets) == sorted(rtx.targets, key=capability)


def test_the_real_logger(rtx):
    log = Log(rtx)
    assert rtx.module.Runtime(log.logger).deserialize_cuda_engine(b"no engine" * 100) is None
    assert "[ERROR]" in log.tail()
    assert "incompatible serialization version" in log.tail()


def test_only_the_first_logger_is_ever_registered():
    """TensorRT warns of each other one, and would keep a freed one."""
    rtx = get_flavor("tensorrt-rtx")
    logs = [Log(rtx), Log(rtx)]
    runtimes = [rtx.module.Runtime(log.logger) for log in logs]
    assert [log.tail() for log in logs] == ["", ""]
    assert runtimes[1].deserialize_cuda_engine(b"no engine" * 100) is None
    assert logs[0].tail() == ""
    assert "differs from one already registered" not in logs[1].tail()
    assert "magicTag" in logs[1].tail()


def test_a_log_may_be_read_while_it_is_written():
    log, done = Log(TENSORRT_10), threading.Event()

    def write() -> None:
        while not done.is_set():
            log.logger.log(Severity.ERROR, "again")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3000):
            log.tail()
    finally:
        done.set()
        writer.join()
