"""Offline tuning: every tile of a kernel, and PyTorch, timed on a model's own calls; the fastest is kept for this GPU.

What is timed is a launch inside a model that runs again and again as one CUDA graph (`CUDATimer`): no launch gaps, the
weights read from memory, because all other weights have been through the cache since the last run, and the activations
from the cache as far as they fit, because the kernel before has just written them. Emptying the cache before every
launch would charge for activations too, and launching again and again on the same weights would make those free. A
launch has the GPU to itself, even where a small batch would run two branches side by side.

A candidate must first give PyTorch's result. It replaces the rule's choice only if it is faster in turn after turn.

This module imports the kernels, and so Triton: import it where it is used.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from conformer_fast.errors import ArgumentError, shown
from conformer_fast.inference.base import InferenceNetwork
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import chip_of
from conformer_fast.kernels.dispatch import PYTORCH, Call, Choice
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model.distance import ALLOWANCE, relative_error
from conformer_fast.model.precision import tf32_as_asked
from conformer_fast.progress import Bar
from conformer_fast.storage.hashed import SUFFIX, DamagedError, HashedFile
from conformer_fast.storage.paths import tuned_folder
from conformer_fast.tables import Column, Table
from conformer_fast.version import __version__

from ..cuda import bucket

LAUNCHES = 20  # in one graph, at most, each with its own copy of the weights
GRAPH_SECONDS = 2e-3  # long launches fill a graph sooner
ROUNDS = 15  # replays of each candidate's graph
CLEARLY = 0.8  # of the rounds must be faster than the rule's choice ...
GAIN = 0.01  # ... by this much

# Launches of one call that differ in nothing but the copies of the weights they read.
Launches = Sequence[Callable[[], Any]]
# Seconds of a launch of each candidate in each round.
Timer = Callable[[Mapping[Choice, Launches]], Mapping[Choice, Sequence[float]]]


@dataclass(frozen=True)
class Tuned:
    """What was measured for one problem. rule: the rule's choice; choice: what to take.

    seconds: the median of a launch, for every candidate that was timed; dropped: why the others were not
    """

    TABLE: ClassVar[Table] = Table(
        Column("problem", width=62),
        Column("rule", width=16),
        Column("us", ".1f", 7),
        Column("chosen", width=16),
        Column("us", ".1f", 7),
        Column("gain", ">", 6),
    )

    problem: str
    rule: Choice
    choice: Choice
    seconds: Mapping[Choice, float]
    dropped: Mapping[Choice, str]

    @property
    def gain(self) -> float | None:
        """How many times faster than the rule's choice; None if that was not timed."""
        return self.seconds[self.rule] / self.seconds[self.choice] if self.rule in self.seconds else None

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, for JSON."""
        times = {name_of(candidate): round(seconds * 1e6, 3) for candidate, seconds in self.seconds.items()}
        names = {"problem": self.problem, "rule": name_of(self.rule), "choice": name_of(self.choice)}
        dropped = {name_of(candidate): why for candidate, why in self.dropped.items()}
        return {**names, "gain": self.gain, "times_us": times, "dropped": dropped}

    def __str__(self) -> str:
        """One line below TABLE.head."""
        if not self.seconds:
            return f"{self.problem}: not measured: {self.dropped[self.rule]}"
        rule_us = self.seconds[self.rule] * 1e6 if self.rule in self.seconds else "failed"
        rule, choice, choice_us = name_of(self.rule), name_of(self.choice), self.seconds[self.choice] * 1e6
        return self.TABLE.line(self.problem, rule, rule_us, choice, choice_us, self.gain and f"{self.gain:.2f}x")


def tune(
    model: nn.Module, images: Tensor, *, timer: Timer | None = None, skip: Container[str] = ()
) -> dict[str, Tuned]:
    """Measures every problem that `model` poses the kernels for `images`, but those in `skip`. Changes no table.

    model:  an inference model on the GPU, in the precision to tune
    images: in the dtype that it will be given
    timer:  times candidates; a CUDATimer if none is given

    The model runs by PyTorch, and each problem is measured when it first comes up, with the tensors it has there.
    """
    device, weights = images.device, {_memory(weight) for weight in model.buffers()}
    timer = timer or CUDATimer(device)
    problems: dict[str, None] = {}  # in the model's order
    found: dict[str, Tuned] = {}

    def look(call: Call) -> Choice:
        if call.plan.unsupported is None and call.plan.problem not in skip:
            problems[call.plan.problem] = None
        return PYTORCH

    def measure(call: Call) -> Choice:
        problem = call.plan.problem
        if problem in problems and problem not in found:
            found[problem] = measured(call, timer, weights)
            progress.update()
        return PYTORCH

    with torch.inference_mode(), torch.autocast(device.type, enabled=False), tf32_as_asked(images.dtype):
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the weights may come from any stream
        with dispatch.deciding(look):
            model(images)
        with Bar("tuning", len(problems), "shape") as progress, dispatch.deciding(measure):
            model(images)
    return found


class KernelTuner:
    """Measures the kernels of models on one GPU, and keeps what it finds in the user's table."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.gpu = gpu_name(device)
        self.file = table_file(self.gpu)

    def rounded(self, batch: int) -> int:
        return bucket(batch)

    def tune(
        self, network: InferenceNetwork, batches: Sequence[int], side: int, skip: Container[str]
    ) -> Iterator[tuple[int, Mapping[str, Tuned] | None]]:
        network = network.to(self._device)
        for batch in batches:
            try:
                found = tune(network, random_images(network, batch, side, side), skip=skip)
            except torch.OutOfMemoryError:
                yield batch, None
            else:
                save(self.gpu, found.values())
                yield batch, found


def tune_new(model: InferenceNetwork, rows: int, height: int, width: int) -> None:
    """Tunes the problems of `rows` images that have no tuned choice yet, uses the choices and adds them to the user's
    table. Does nothing if the GPU has no room for such a batch: running it will say so."""
    gpu = gpu_name(model.device)
    try:
        found = tune(model, random_images(model, rows, height, width), skip=dispatch.table(gpu))
    except torch.OutOfMemoryError:
        return
    if found:
        measured = {tuned.problem: tuned.choice for tuned in found.values() if tuned.seconds}
        dispatch.use_table(gpu, {**dispatch.table(gpu), **measured})
        try:
            save(gpu, found.values())
        except OSError as error:
            warnings.warn(f"what was tuned is not kept: {table_file(gpu)} cannot be written ({error})", stacklevel=2)


def random_images(model: InferenceNetwork, rows: int, height: int, width: int) -> Tensor:
    """A batch as the model is given it: a GPU is faster on zeros, which take less power."""
    generator = torch.Generator(model.device).manual_seed(0)  # PyTorch's own random numbers stay as they are
    shape = rows, model.second_dimension, height, width
    return torch.randn(shape, generator=generator, dtype=model.dtype, device=model.device)


def measured(call: Call, timer: Timer, weights: Container[int]) -> Tuned:
    """What was measured of one call, whose tensors in the memory of `weights` are a model's."""
    rule, candidates = call.plan.tiles[0], (*call.plan.tiles, PYTORCH)
    rounds: Mapping[Choice, Sequence[float]] = {}
    try:
        dropped = _faults(call, candidates)
        copies = [_with_own_weights(call, weights) for _ in range(LAUNCHES)]
        kept = [candidate for candidate in candidates if candidate not in dropped]
        if kept:
            rounds = timer({candidate: [partial(copy.run, candidate) for copy in copies] for candidate in kept})
    except torch.OutOfMemoryError:
        dropped = dict.fromkeys(candidates, "the GPU has no room to measure this")
    seconds = {candidate: statistics.median(times) for candidate, times in rounds.items()}
    return Tuned(call.plan.problem, rule, fastest(rounds, rule) if rounds else rule, seconds, dropped)


def fastest(rounds: Mapping[Choice, Sequence[float]], rule: Choice) -> Choice:
    """The candidate with the smallest median; but the rule's choice, if it was timed, unless clearly slower.

    The two are compared round by round: within one, the GPU's clock is about the same.
    """
    best = min(rounds, key=lambda candidate: statistics.median(rounds[candidate]))
    if rule not in rounds:
        return best
    ratios = sorted(own / base for own, base in zip(rounds[best], rounds[rule], strict=True))
    return best if ratios[round(CLEARLY * (len(ratios) - 1))] < 1 - GAIN else rule


def _faults(call: Call, candidates: Iterable[Choice]) -> dict[Choice, str]:
    """Why some of the candidates must not run this call: they fail, or err more than `verify` would allow them."""
    exact = _outputs(_with_tensors(call, _finest)())
    eager = _outputs(call.pytorch())
    # Some roundings, where PyTorch happens to be exact. Numbers of 8 bits are made of values in 16.
    floors = [8 * torch.finfo(torch.float16 if value.element_size() == 1 else value.dtype).eps for value in eager]
    bounds = [ALLOWANCE * error + floor for error, floor in zip(_errors(eager, exact), floors, strict=True)]
    faults: dict[Choice, str] = {}
    if not all(map(math.isfinite, bounds)):
        return dict.fromkeys(candidates, "PyTorch's own result is not finite, so nothing can be compared with it")
    for candidate in candidates:
        poison = [torch.full_like(value, 127 if value.dtype == torch.int8 else torch.nan) for value in eager]
        del poison  # its memory is probably what the kernel gets next: an element that is not written shows
        try:
            errors = _errors(_outputs(call.run(candidate)), exact)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler, a driver or a launch raises
            faults[candidate] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        worst = next((pair for pair in zip(errors, bounds, strict=True) if not pair[0] <= pair[1]), None)
        if worst:
            faults[candidate] = "its relative error is {:.1e}, at most {:.1e} is allowed".format(*worst)
    return faults


def _with_own_weights(call: Call, weights: Container[int]) -> Call:
    """The same call on a copy of the weights: of those arguments that lie in the memory of `weights`."""
    pytorch = _with_tensors(call, lambda tensor: tensor.clone() if _memory(tensor) in weights else tensor)
    plan = dispatch.PLANS[call.operation](*pytorch.args, **pytorch.keywords)
    return replace(call, plan=plan, pytorch=pytorch)


def _with_tensors(call: Call, change: Callable[[Tensor], Tensor]) -> partial[Any]:
    args, keywords = tree_map_only(Tensor, change, (call.pytorch.args, call.pytorch.keywords))
    return partial(call.pytorch.func, *args, **keywords)


def _finest(tensor: Tensor) -> Tensor:
    """In float64; numbers in 8 bits as they are."""
    return tensor if tensor.element_size() == 1 else tensor.double()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _errors(values: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """||value - exact|| / ||exact|| of each output."""
    return [relative_error(*pair) for pair in zip(values, exact, strict=True)]


class CUDATimer:
    """Times launches as they are inside a model's CUDA graph; see the top of this file."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._other_data = torch.zeros(2 * cache, dtype=torch.uint8, device=device).view(torch.int32)
            # One for all: PyTorch keeps a workspace for each that it has used. For its priority see graphs.Device.
            self._stream = torch.cuda.Stream(priority=-1)

    def __call__(self, candidates: Mapping[Choice, Launches]) -> Mapping[Choice, Sequence[float]]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            torch.cuda.synchronize()  # the tensors come from another stream
            pool = torch.cuda.graph_pool_handle()  # the graphs take turns, and nobody reads what they write
            graphs = {candidate: self._record(launches, pool) for candidate, launches in candidates.items()}
            events = {candidate: [_Events() for _ in range(ROUNDS)] for candidate in candidates}
            for turn in range(ROUNDS):
                for candidate, (graph, _) in graphs.items():
                    self._other_data.sum()  # evicts the weights, and keeps the GPU busy until the replay is queued
                    with events[candidate][turn]:
                        graph.replay()
            self._stream.synchronize()
        return {
            candidate: [timed.seconds / graphs[candidate][1] for timed in events[candidate]] for candidate in candidates
        }

    def _record(self, launches: Launches, pool: Any) -> tuple[torch.cuda.CUDAGraph, int]:
        """A graph of as many of the launches as take GRAPH_SECONDS, and their number."""
        for launch in launches:
            launch()  # prepares its copy of the weights
        with _Events() as timed:
            for launch in launches:
                launch()
        self._stream.synchronize()
        count = max(1, min(len(launches), round(GRAPH_SECONDS * len(launches) / timed.seconds)))
        graph = torch.cuda.CUDAGraph()
        # In this mode other threads may allocate memory meanwhile.
        with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
            for launch in launches[:count]:
                launch()
        graph.replay()  # the first replay also uploads the graph
        return graph, count


class _Events:
    """The time that the GPU takes for what is queued inside, on the current stream."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __enter__(self) -> _Events:
        self._start.record()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.record()

    @property
    def seconds(self) -> float:
        """Once the GPU is done."""
        return self._start.elapsed_time(self._end) / 1e3


def use_user_table(device: torch.device) -> None:
    """Lets kernels on this GPU take what the user's table says. A table that cannot be used is a warning."""
    gpu = gpu_name(device)
    choices = load(gpu)
    if choices:
        dispatch.use_table(gpu, {**dispatch.table(gpu), **choices})


def load(gpu: str) -> dict[str, Choice]:
    """The choices of the user's table for this GPU; none, with a warning, if it is damaged or measured by other
    versions."""
    file = table_file(gpu)
    try:
        content = HashedFile(file).read()
        if content is not None:
            return _parsed(content, gpu, str(file))["choices"]
        if file.exists():
            raise ArgumentError(f"{file} has no {file.name}{SUFFIX} beside it, where its sha256 is")
        return {}
    except ValueError as error:
        warnings.warn(f"the tuned table is not used: {error}; `conformer-fast tune` makes a new one", stacklevel=2)
        return {}


def save(gpu: str, found: Iterable[Tuned]) -> Path:
    """Adds what was measured to the user's table, in place of what is there for the same problems. Returns the file.

    A table that `load` would not use is replaced. The file is whole at any time, and no other process's entries are
    lost. Raises OSError if it cannot be written.
    """
    file = HashedFile(table_file(gpu))
    with file.locked():
        try:
            content = file.read()
        except DamagedError:
            content = None
        file.write(with_added(content, gpu, found))
    return file.path


def with_added(content: bytes | None, gpu: str, found: Iterable[Tuned]) -> bytes:
    """The table in `content`, if it was measured here by these versions, with what was measured in place of the same
    problems' entries."""
    table: dict[str, Any] = {}
    if content is not None:
        with suppress(ValueError):
            table = _parsed(content, gpu, "the table")
    table = {name: table.get(name, {}) for name in ENTRIES}
    for tuned in found:
        if tuned.seconds:
            table["choices"][tuned.problem] = tuned.choice
            for name in ("times_us", "dropped"):
                table[name][tuned.problem] = tuned.facts[name]
    table["dropped"] = {problem: why for problem, why in table["dropped"].items() if why}
    text = json.dumps({"gpu": gpu, **versions(), "driver": _driver(), **table}, indent=1)
    text = re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda tile: "[" + " ".join(tile[1].split()) + "]", text)  # on one line
    return f"{text}\n".encode()


def gpu_name(device: torch.device) -> str:
    """What the tables are kept by."""
    return chip_of(device).name


def table_file(gpu: str) -> Path:
    """The user's table for this GPU. It may not exist."""
    return tuned_folder() / dispatch.file_name(gpu)


def name_of(choice: Choice) -> str:
    """64x128x32 w4 s3: m x n x k, warps, stages; or pytorch."""
    return f"{choice.m}x{choice.n}x{choice.k} w{choice.warps} s{choice.stages}" if isinstance(choice, Tile) else choice


ENTRIES = ("choices", "times_us", "dropped")


def _parsed(content: bytes, gpu: str, where: str) -> dict[str, Any]:
    """The table, its choices as `Choice`. Raises ArgumentError, naming `where`, if it is none or not measured here."""
    choices = dispatch.choices_in(content, where)
    table = json.loads(content) | {"choices": choices}
    if not all(isinstance(table.get(name), dict) for name in ENTRIES):
        raise ArgumentError(f"{where} has not all of {', '.join(ENTRIES)}")
    for name, here in {"gpu": gpu, **versions()}.items():
        if table.get(name) != here:
            raise ArgumentError(f"{where} was measured with {name} {shown(table.get(name))}, here is {here}")
    return table


def versions() -> dict[str, str]:
    """What decides how fast each candidate is, and which there are."""
    import triton

    return {"conformer_fast": __version__, "torch": str(torch.__version__), "triton": triton.__version__}


def _driver() -> str | None:
    """The NVIDIA driver's version, for the reader of a table."""
    with suppress(OSError):
        found = re.search(r"\d{3,}\.[\d.]+", Path("/proc/driver/nvidia/version").read_text())
        return found and found[0]
    return None
