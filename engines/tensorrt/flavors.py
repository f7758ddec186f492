"""TensorRT and TensorRT-RTX behind one face.

Both have the same classes, so the builder and the runtime are written once; what differs is a property of `Flavor`.
What goes wrong inside TensorRT reaches only its logger, and the call returns None: `Log` keeps it, `EngineError` says
it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from conformer_fast.errors import BackendError, EngineError, one_of

from . import FLAVORS

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
OLDEST_VERSION = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 7)}
MESSAGES_KEPT = 50  # of a log: the last warnings and errors
ANOTHER_LOGGER = "differs from one already registered"  # a warning that is true of each logger but the first


@dataclass(frozen=True)
class Flavor:
    """One installed TensorRT. name: "tensorrt" or "tensorrt-rtx"; version: as the module gives it."""

    name: str
    module: ModuleType
    version: str

    def __str__(self) -> str:
        return f"{FLAVORS[self.name]} {self.version}"

    @property
    def network_flags(self) -> int:
        """What create_network is given. Only TensorRT 10 still has to be asked for types as the graph states them."""
        if self._rtx or _release(self.version) >= (11, 0):
            return 0
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @property
    def builds_without_gpu(self) -> bool:
        """Whether it builds for named compute capabilities (`targets`) instead of for the GPU that is here."""
        return self._rtx

    @property
    def targets(self) -> tuple[str, ...]:
        """The compute capabilities it can be told to build our graphs for, as "sm86", the oldest first."""
        if not self.builds_without_gpu:
            return ()
        names = [name.lower() for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
        oldest = min(self.oldest.values())
        return tuple(sorted((name for name in names if capability(name) >= oldest), key=capability))

    @property
    def oldest(self) -> Mapping[str, int]:
        """The oldest compute capability that runs our graphs in a precision, where that is not every one."""
        # The heads are fp32 products in every precision, and TensorRT-RTX has none for Turing.
        every = dict.fromkeys(("fp32", "fp16", "int8"), 80) if self._rtx else {}
        return {**every, "bf16": 80, "fp8": 89}

    @property
    def has_timing_cache(self) -> bool:
        """Whether a build can use the timings of earlier ones. TensorRT-RTX times nothing when it builds."""
        return not self._rtx

    @property
    def has_runtime_cache(self) -> bool:
        """Whether it compiles kernels when an engine first runs, and can keep them."""
        return self._rtx

    @property
    def captures_graphs_itself(self) -> bool:
        """Whether it records CUDA graphs by itself if its runtime configuration says so."""
        return self._rtx

    @property
    def _rtx(self) -> bool:
        return self.name == "tensorrt-rtx"


def get_flavor(name: str = "auto") -> Flavor:
    """The installed TensorRT of that name; "auto": TensorRT if there is one and a GPU, else TensorRT-RTX.

    Raises ArgumentError for an unknown name, BackendError if it is not installed, too old or cannot be imported.
    """
    one_of("flavor", name, ("auto", *FLAVORS))
    modules = {known: _module_name(known) for known in FLAVORS}
    if name == "auto":
        if not any(modules.values()):
            raise BackendError(f'{_missing("tensorrt")}, or "conformer-fast[tensorrt-rtx]" to build without a GPU')
        name = "tensorrt" if modules["tensorrt"] and gpu_target() else "tensorrt-rtx"
    installed = modules[name]
    if installed is None:
        raise BackendError(_missing(name))
    try:
        module = import_module(installed)
    except (ImportError, OSError) as error:
        raise BackendError(f"{FLAVORS[name]} is installed but cannot be imported: {error}") from error
    if _release(module.__version__) < OLDEST_VERSION[name]:
        needed = ".".join(map(str, OLDEST_VERSION[name]))
        raise BackendError(
            f"{FLAVORS[name]} {module.__version__} is too old, {needed} or newer is needed: "
            f'pip install --upgrade "conformer-fast[{name}]"'
        )
    return Flavor(name, module, module.__version__)


def gpu_target() -> str | None:
    """The compute capability of the current GPU, as "sm86"; None if there is no CUDA GPU."""
    if not torch.cuda.is_available() or torch.version.hip:
        return None
    return "sm{}{}".format(*torch.cuda.get_device_capability())


def capability(target: str) -> int:
    """The number in a target's name: 86 for "sm86". Targets compare by it."""
    return int(target.removeprefix("sm"))


class Log:
    """The last warnings and errors of TensorRT, as (severity, text).

    logger: what TensorRT is given; it must outlive what was made with it
    """

    def __init__(self, flavor: Flavor) -> None:
        _keep_a_logger(flavor)
        self.messages: deque[tuple[str, str]] = deque(maxlen=MESSAGES_KEPT)
        self.logger = _logger(flavor.module, self.messages)

    def tail(self) -> str:
        """One line a message, the oldest first; empty if there is none."""
        return "\n".join(f"[{severity}] {text}" for severity, text in tuple(self.messages))

    def error(self, what: str) -> EngineError:
        """The error to raise when `what` happened."""
        said = f"the log of TensorRT ends with\n{self.tail()}" if self.messages else "TensorRT's logger said nothing"
        return EngineError(f"{what}; {said}")


_keepers: dict[int, tuple[Any, ...]] = {}  # by the module's id


def _keep_a_logger(flavor: Flavor) -> None:
    """TensorRT keeps the first logger it is given for as long as any builder or runtime lives, even once that logger is
    freed. So the first one is never freed, and a runtime keeps it in place."""
    if id(flavor.module) not in _keepers:
        logger = _logger(flavor.module, deque(maxlen=0))
        with suppress(RuntimeError, TypeError):  # no usable driver: whoever needs one says so
            _keepers[id(flavor.module)] = flavor.module, logger, flavor.module.Runtime(logger)


def _logger(module: ModuleType, messages: deque[tuple[str, str]]) -> Any:
    base: Any = module.ILogger
    mildest = int(base.Severity.WARNING)  # a smaller number is worse

    def start(self: Any) -> None:
        base.__init__(self)

    def log(self: Any, severity: Any, text: str) -> None:
        if int(severity) <= mildest and ANOTHER_LOGGER not in text:
            messages.append((severity.name, text))

    return type("Logger", (base,), {"__init__": start, "log": log})()


def _module_name(name: str) -> str | None:
    """The Python module that is installed for this flavor."""
    return next((module for module in MODULES[name] if find_spec(module)), None)


def _missing(name: str) -> str:
    return f'{FLAVORS[name]} is not installed: pip install "conformer-fast[{name}]"'


def _release(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)
