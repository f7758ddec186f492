"""As much of TensorRT as its builder needs, which builds nothing and notes what was asked of it."""

import weakref
from enum import IntEnum
from types import ModuleType

from conformer_fast.engines.tensorrt.flavors import Flavor


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
