"""The builder: a typed ONNX graph becomes a TensorRT engine, the bytes of a plan file.

Precision is the graph's own: the network is strongly typed and no builder flag is set. What a flavor cannot do is
refused by name before any work.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from conformer_fast.errors import ArgumentError, BackendError, one_of, shown
from conformer_fast.model.names import PRECISIONS
from conformer_fast.model.shapes import Shapes
from conformer_fast.progress import Bar

from ..ctrl_c import ctrl_c_calls
from . import timing_cache
from .flavors import Flavor, Log, capability, gpu_target


def engine_from_onnx(
    onnx: bytes, several: Sequence[Shapes], flavor: Flavor, targets: Sequence[str] = (), precision: str = "fp16"
) -> bytes:
    """The engine of an ONNX graph with one input, images (B, C, H, W), whose B, H and W are free.

    several:   the shapes it will take; one in several of them runs in the first
    targets:   compute capabilities to build for, as "sm86"; none: the GPU here
    precision: what the graph is typed in; it decides which GPUs will do

    Raises what `check_options` raises, EngineError with TensorRT's log if there is no engine in the end, and
    KeyboardInterrupt after Ctrl-C. The GPU's and the builder's memory is free again in any case.
    """
    check_options(flavor, targets, precision)
    if not several:
        raise ArgumentError("an engine needs the shapes that it is to take; none were given")
    log, progress = Log(flavor), _Progress(flavor)
    with progress.shown():
        # Nothing is raised where TensorRT's objects are: a traceback would keep them alive.
        built = _build(onnx, several, flavor, targets, log, progress)
    if progress.canceled:
        raise KeyboardInterrupt
    if isinstance(built, str):
        raise log.error(f"{flavor} built no engine: {built}")
    return built


def check_options(flavor: Flavor, targets: Sequence[str] = (), precision: str = "fp16") -> None:
    """Refuses what cannot be built: ArgumentError for a name that does not exist, BackendError for what this flavor or
    this machine cannot do."""
    one_of("precision", precision, PRECISIONS)
    oldest = flavor.oldest.get(precision, 0)
    too_old = [target for target in targets_of(flavor, targets) if capability(target) < oldest]
    if too_old:
        raise BackendError(
            f"precision {precision!r} needs sm{oldest} or newer with {flavor}, and the engine is to run on "
            f"{', '.join(too_old)}; choose other targets or another precision"
        )


def targets_of(flavor: Flavor, targets: Sequence[str] = ()) -> tuple[str, ...]:
    """What an engine will be for: `targets` by age and without repeats, else the compute capability of the GPU here.

    Raises ArgumentError for a name that is not like "sm86", BackendError for a target that cannot be built for.
    """
    names = sorted({_target(name) for name in targets}, key=capability)
    here = gpu_target()
    if not flavor.builds_without_gpu:
        if here is None:
            raise BackendError(
                f"{flavor} builds on the GPU that the engine is for, and there is no CUDA GPU here; "
                "TensorRT-RTX builds without one"
            )
        if names:
            raise BackendError(
                f"{flavor} builds for the GPU of this machine only ({here}), not for {', '.join(names)}; "
                "leave the targets out, or use TensorRT-RTX"
            )
    unknown = [name for name in names if name not in flavor.targets]
    if unknown:
        raise BackendError(f"{flavor} cannot build for {', '.join(unknown)}; it can for {', '.join(flavor.targets)}")
    if names:
        return tuple(names)
    if here is None:
        raise BackendError(
            "there is no CUDA GPU here to build for: give --target with what the engine is to run on, "
            f"of {', '.join(flavor.targets)}"
        )
    return (here,)


def _target(name: str) -> str:
    if not re.fullmatch(r"sm\d{2,3}", name.lower()):
        raise ArgumentError(f'a target is a compute capability written like "sm86" for 8.6, got {shown(repr(name))}')
    return name.lower()


def _build(
    onnx: bytes, several: Sequence[Shapes], flavor: Flavor, targets: Sequence[str], log: Log, progress: _Progress
) -> bytes | str:
    """The plan, or why there is none."""
    trt = flavor.module
    try:
        builder = trt.Builder(log.logger)
    except (RuntimeError, TypeError) as error:  # no usable driver, for instance
        return str(error)
    network = builder.create_network(flavor.network_flags)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(onnx):
        return "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
    if network.num_inputs != 1:
        return f"the ONNX graph must have one input, it has {network.num_inputs}"
    images = network.get_input(0)
    config = builder.create_builder_config()
    config.progress_monitor = progress.monitor
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 in the graph is meant
    for shapes in several:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, *shapes.with_channels(images.shape[1]))
        if config.add_optimization_profile(profile) < 0:
            return f"{shapes} was refused"
    if flavor.builds_without_gpu:
        names = [name.upper() for name in targets_of(flavor, targets)] if targets else ["CURRENT"]
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
                return f"compute capability {name} was refused"
    timings = timing_cache.attach(config, flavor) if flavor.has_timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return "the build failed"
    if timings is not None:
        timing_cache.keep(timings, config, flavor)
    return bytes(memoryview(plan))


class _Progress:
    """A build as one bar, and Ctrl-C, which stops it at its next step. monitor: what TensorRT reports to.

    TensorRT reports phases inside phases, each with its number of steps; a phase fills one step of the one around it.
    """

    def __init__(self, flavor: Flavor) -> None:
        self.monitor = _monitor(flavor.module, self)
        self.canceled = False
        self._phases: dict[str, tuple[int, int]] = {}  # steps done and all steps, the outermost phase first
        self._lock = threading.Lock()  # TensorRT may report from several threads

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the bar, if a person is looking, and takes Ctrl-C."""
        self._bar = Bar("building", 1.0, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}")
        # Python would raise KeyboardInterrupt inside a callback, where TensorRT prints it and goes on.
        with self._bar, ctrl_c_calls(lambda: setattr(self, "canceled", True)):
            yield

    def start(self, phase: str, steps: int) -> None:
        with self._lock:
            self._phases[phase] = 0, steps
            self._bar.set_postfix_str(phase, refresh=False)

    def step(self, phase: str, index: int) -> bool:
        """Whether to go on. index: of the step that is done, from 0."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase] = index + 1, self._phases[phase][1]
                self._advance()
        return not self.canceled

    def finish(self, phase: str) -> None:
        with self._lock:
            self._phases.pop(phase, None)

    def _advance(self) -> None:
        share, width = 0.0, 1.0
        for done, steps in self._phases.values():
            width /= steps
            share += done * width
        self._bar.update(max(0.0, share - self._bar.n))


def _monitor(module: ModuleType, progress: _Progress) -> Any:
    base: Any = module.IProgressMonitor
    methods = {
        "__init__": lambda self: base.__init__(self),
        "phase_start": lambda self, phase, parent, steps: progress.start(phase, steps),
        "step_complete": lambda self, phase, index: progress.step(phase, index),
        "phase_finish": lambda self, phase: progress.finish(phase),
    }
    return type("Monitor", (base,), methods)()
