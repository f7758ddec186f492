"""Offline tuning: what is measured and how, which candidate is taken, and the user's table on disk."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_checks import DEVICE, DTYPES  # first: it chooses the interpreter where there is no GPU
from torch import Tensor, nn

import conformer_fast as cf
from conformer_fast.engines.triton import tuning
from conformer_fast.engines.triton.tuning import Tuned, fastest, load, save, tune
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import Weights
from conformer_fast.inference.quantization import Quantization
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import chip_of
from conformer_fast.kernels.dispatch import PYTORCH
from conformer_fast.kernels.launch import Plan
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF
from conformer_fast.model.precision import FORMATS
from conformer_fast.storage.hashed import HashedFile

GPU = "NVIDIA Test"  # what the GPU here is called, so that no other test's tables and none that ships are its
RULE, FAST, SLOW, BAD = (Tile(m, 64, 32, 4, 3) for m in (64, 32, 128, 256))


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty cache of this test's own, no tables, and operators that are kernels."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    for module in (dispatch, tuning):
        monkeypatch.setattr(module, "chip_of", lambda device: replace(chip_of(device), name=GPU))
    dispatch.use_table(GPU, {})
    with ops.on_kernels():
        yield tmp_path / "tuned"


class Net(nn.Module):
    """Three products, of which two pose the same problem."""

    def __init__(self, dtype: torch.dtype = torch.float16, channels: int = 20) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels)
        square, wide = torch.randn(channels, channels, device=DEVICE), torch.randn(33, channels, device=DEVICE)
        self.stem, self.second = (Weights(square / 4, square[0]).to(dtype) for _ in range(2))
        self.last = Weights(wide / 4, wide[:, 0]).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        feature_map = images.permute(0, 2, 3, 1)
        feature_map = ops.conv1x1(ops.conv1x1(feature_map, *self.stem()), *self.second())
        return ops.conv1x1(feature_map, *self.last(), relu=False)


class FakeTimer:
    """Gives each candidate the same time, those in `seconds` another, in every round. Keeps what it was asked."""

    def __init__(self, seconds: Mapping[Any, float] = {}) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, candidates):
        self.asked.append(candidates)
        return {candidate: [self.seconds.get(candidate, 1.0)] * 5 for candidate in candidates}


def problems(model: nn.Module, images: Tensor) -> list[dispatch.Call]:
    with dispatch.calls() as made:
        model(images)
    return made


def test_each_problem_is_measured_once_with_every_tile_and_pytorch():
    model, timer = Net(), FakeTimer()
    images = tuning.random_images(model, 2, 3, 5)
    first, _, last = problems(model, images)
    found = tune(model, images, timer=timer)
    assert [*found] == [first.plan.problem, last.plan.problem]
    for asked, call in zip(timer.asked, (first, last), strict=True):
        assert len(call.plan.tiles) > 1
        assert [*asked] == [*call.plan.tiles, PYTORCH]
    assert {tuned.choice for tuned in found.values()} == {first.plan.tiles[0], last.plan.tiles[0]}
    assert dispatch.table(GPU) == {}


@DTYPES
def test_no_tile_is_dropped(dtype):
    model = Net(dtype)
    found = tune(model, tuning.random_images(model, 3, 5, 7), timer=FakeTimer())
    assert [tuned.dropped for tuned in found.values()] == [{}, {}]


@pytest.mark.parametrize("precision", FORMATS)
def test_no_tile_of_a_product_in_8_bits_is_dropped(precision):
    """Candidates are compared with the same numbers summed in float64."""
    quantization, model = Quantization(precision, {"second": 3.0}), Net()
    model.second.quantize("second", quantization)
    model.forward = lambda images: ops.conv1x1(
        images.permute(0, 2, 3, 1).contiguous(), *model.second(), **model.second.scales()
    )
    (tuned,) = tune(model, tuning.random_images(model, 3, 5, 7), timer=FakeTimer()).values()
    assert tuned.problem.startswith(f"conv1x1 {precision}-fp16 ")
    assert tuned.dropped == {}


def test_launches_share_the_activations_and_have_their_own_weights():
    model, timer = Net(), FakeTimer()
    images = tuning.random_images(model, 1, 4, 4)
    expected = problems(model, images)[0].pytorch()
    tune(model, images, timer=timer)
    for launches in timer.asked[0].values():
        calls = [launch.func.__self__ for launch in launches]
        maps, weights = ([call.pytorch.args[index].data_ptr() for call in calls] for index in (0, 1))
        assert set(maps) == {images.data_ptr()}
        assert len({*weights, model.stem.weight.data_ptr()}) == len(launches) + 1 == tuning.LAUNCHES + 1
        assert torch.allclose(launches[7](), expected, atol=1e-2)


def test_the_model_runs_as_the_executor_runs_it():
    class Probe(nn.Module):
        def forward(self, images):
            assert torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled(DEVICE)
            seen.append(images)

    seen: list[Tensor] = []
    with torch.autocast(DEVICE, torch.bfloat16):
        assert tune(Probe(), torch.ones(1, device=DEVICE), timer=FakeTimer()) == {}
    assert seen


def test_what_is_skipped_or_has_no_kernel_is_not_measured():
    model, timer = Net(), FakeTimer()
    images = tuning.random_images(model, 1, 4, 4)
    first, _, last = problems(model, images)
    assert [*tune(model, images, timer=timer, skip={first.plan.problem})] == [last.plan.problem]
    assert len(timer.asked) == 1
    model = Net(torch.float64)
    assert tune(model, tuning.random_images(model, 1, 4, 4), timer=timer) == {}


def test_random_images_are_those_of_the_model_and_leave_the_random_state_alone():
    model = Net(torch.bfloat16, channels=5)
    before = torch.get_rng_state()
    images = tuning.random_images(model, 2, 3, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert (images.shape, images.dtype, images.device.type) == ((2, 5, 3, 4), torch.bfloat16, DEVICE)
    assert images.std() > 0.5


@pytest.mark.parametrize(
    ("rounds", "choice"),
    [
        ({RULE: [2, 2, 2], FAST: [1, 1, 1], SLOW: [3, 3, 3]}, FAST),
        ({RULE: [2, 2, 2], FAST: [2, 2, 2]}, RULE),
        ({RULE: [2, 2, 2], PYTORCH: [1, 1, 1]}, PYTORCH),
        ({FAST: [3, 3, 3], PYTORCH: [2, 2, 2]}, PYTORCH),  # the rule's tile failed
        ({RULE: [2.0, 2.0, 2.0], FAST: [1.99, 1.99, 1.99]}, RULE),  # less than is worth a change
        ({RULE: [2, 2, 2, 2, 2], FAST: [1, 1, 1, 3, 3]}, RULE),  # not in round after round
        ({RULE: [2, 4, 6, 8, 10], FAST: [1.8, 3.6, 5.4, 7.2, 9.0]}, FAST),  # the clock falls, the ratio stays
        ({RULE: [2, 2, 2, 2, 2], FAST: [1, 1, 1, 1, 9]}, FAST),  # one disturbance
    ],
)
def test_the_fastest_is_taken_if_it_clearly_is(rounds, choice):
    assert fastest(rounds, RULE) == choice


@pytest.fixture
def plan(monkeypatch) -> Callable[..., None]:
    """Puts in place of conv1x1's a plan with these tiles, each run by a function of PyTorch's result."""

    def put(tiles: dict[Tile, Callable[[Tensor], Tensor]]) -> None:
        def plan_of(*args, **kwargs):
            eager = CF.conv1x1(*args, **kwargs)
            name = f"fake M{args[0].numel()} N{len(args[1])}"
            return Plan(name, None, tuple(tiles), lambda tile: tiles[tile](eager))

        monkeypatch.setitem(dispatch.PLANS, "conv1x1", plan_of)

    return put


def raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def run(_: Tensor) -> Tensor:
        raise error

    return run


def same(eager: Tensor) -> Tensor:
    return eager.clone()


def first_of(seconds: Mapping[Any, float] = {}, dtype=torch.float16) -> Tuned:
    model = Net(dtype)
    return next(iter(tune(model, tuning.random_images(model, 1, 4, 4), timer=FakeTimer(seconds)).values()))


def test_the_fastest_of_the_good_is_taken(plan):
    plan({RULE: same, FAST: same, SLOW: same})
    tuned = first_of({FAST: 0.5, SLOW: 2.0})
    assert (tuned.rule, tuned.choice, tuned.gain) == (RULE, FAST, 2.0)
    assert tuned.seconds == {RULE: 1.0, FAST: 0.5, SLOW: 2.0, PYTORCH: 1.0}
    assert first_of({PYTORCH: 0.5}).choice == PYTORCH


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (raising(RuntimeError("out of resource: shared memory\nmore")), "RuntimeError: out of resource: shared memory"),
        (raising(IndexError("map::at")), "IndexError: map::at"),
        (lambda eager: eager * 1.1, "its relative error is 1.0e-01, at most"),
        (lambda eager: torch.full_like(eager, torch.nan), "its relative error is nan"),
    ],
    ids=["cannot be launched", "compiler", "inexact", "NaN"],
)
def test_a_candidate_that_fails_is_dropped_and_says_why(plan, run, why):
    plan({RULE: same, BAD: run, FAST: same})
    tuned = first_of({BAD: 0.1, FAST: 0.5})
    assert tuned.choice == FAST
    assert [*tuned.dropped] == [BAD]
    assert tuned.dropped[BAD].startswith(why)
    assert "\n" not in tuned.dropped[BAD]
    assert BAD not in tuned.seconds
    plan({BAD: run, FAST: same})  # now it is the rule's
    tuned = first_of({PYTORCH: 0.5})
    assert (tuned.rule, tuned.choice, tuned.gain) == (BAD, PYTORCH, None)
    assert "failed" in str(tuned)
    plan({BAD: run})
    assert first_of().choice == PYTORCH


def test_memory_is_poisoned_before_it_goes_to_a_candidate(plan, monkeypatch):
    freed, full_like = [], torch.full_like

    def keeping(*args):
        freed.append(full_like(*args))
        return freed[-1]

    monkeypatch.setattr(torch, "full_like", keeping)
    plan({RULE: same, BAD: lambda eager: freed[-1]})  # gets the memory freed last, and writes nothing
    assert first_of().dropped[BAD].startswith("its relative error is nan")


def test_errors_are_allowed_as_pytorch_makes_them(plan):
    plan({RULE: lambda eager: eager * (1 + 1e-3)})
    assert first_of(dtype=torch.bfloat16).dropped == {}
    assert [*first_of(dtype=torch.float32).dropped] == [RULE]


def test_without_room_to_measure_the_rule_stays(plan):
    plan({RULE: same, BAD: raising(torch.OutOfMemoryError("CUDA out of memory"))})
    tuned = first_of()
    assert (tuned.choice, tuned.seconds, tuned.gain) == (RULE, {}, None)
    assert "room" in str(tuned)
    assert json.loads(save(GPU, [tuned]).read_text())["choices"] == {}


def test_values_that_overflow_are_not_judged():
    model = Net()
    model.stem.weight.mul_(1e4)
    first = next(iter(tune(model, tuning.random_images(model, 1, 4, 4) * 100, timer=FakeTimer()).values()))
    assert (first.choice, first.seconds) == (first.rule, {})
    assert "finite" in first.dropped[first.rule]


def test_an_error_of_pytorch_itself_is_raised(plan):
    class Broken(nn.Module):
        def forward(self, images):
            return ops.conv1x1(images, torch.ones(3, 7, device=DEVICE), torch.ones(3, device=DEVICE))

    with pytest.raises(RuntimeError, match="shapes"):
        tune(Broken(), torch.ones(1, 2, 2, 5, device=DEVICE), timer=FakeTimer())


def tuned(problem: str = "linear fp16 M6", choice=FAST, **seconds: float) -> Tuned:
    return Tuned(problem, RULE, choice, {RULE: 2e-6, choice: 1e-6}, {BAD: "RuntimeError: too large"})


def test_the_table_keeps_what_was_measured(folder):
    assert load(GPU) == {}
    file = save(GPU, [tuned("a"), tuned("b", PYTORCH), replace(tuned("c"), choice=RULE)])
    assert file == folder / dispatch.file_name(GPU) == tuning.table_file(GPU)
    assert load(GPU) == {"a": FAST, "b": PYTORCH, "c": RULE}
    table = json.loads(file.read_text())
    assert (table["gpu"], table["torch"], table["conformer_fast"]) == (GPU, torch.__version__, cf.__version__)
    assert table["triton"]
    assert table["times_us"]["a"] == {"64x64x32 w4 s3": 2.0, "32x64x32 w4 s3": 1.0}
    assert table["dropped"]["b"] == {"256x64x32 w4 s3": "RuntimeError: too large"}
    assert "[32, 64, 32, 4, 3]" in file.read_text()
    assert sorted({path.suffix for path in folder.iterdir()} - {".lock"}) == [".hash", ".json"]


def test_later_measurements_are_added_and_replace_the_same_problems():
    save(GPU, [tuned("a"), tuned("b")])
    save(GPU, [tuned("b", PYTORCH), tuned("c", SLOW)])
    save("another GPU", [tuned("d")])
    assert load(GPU) == {"a": FAST, "b": PYTORCH, "c": SLOW}
    assert load("another GPU") == {"d": FAST}


def test_nothing_is_lost_when_several_save_at_once():
    threads = [threading.Thread(target=save, args=(GPU, [tuned(f"problem {index}")])) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load(GPU)) == 12


def test_a_write_that_fails_leaves_the_old_table(folder, monkeypatch):
    save(GPU, [tuned("a")])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(GPU, [tuned("b")])
    assert load(GPU) == {"a": FAST}
    assert not [*folder.glob("*.part")]


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **fields}).encode()


FOREIGN = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "no table": lambda content: b"[1, 2]",
    "not text": lambda content: b"\xff",
    "no times": changed(times_us=3),
    "foreign choice": changed(choices={"a": "cublas"}),
    "another GPU's": changed(gpu="NVIDIA Z1"),
    "another Triton's": changed(triton="2.0.0"),
    "another PyTorch's": changed(torch="1.0.0"),
    "older": changed(conformer_fast="0.0.1"),
}


@pytest.mark.parametrize("hashed", [True, False], ids=["written so", "damaged"])
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_table_that_cannot_be_used_is_a_warning_and_is_replaced(change, hashed):
    file = save(GPU, [tuned("a")])
    content = change(file.read_bytes())
    if hashed:
        HashedFile(file).write(content)
    else:
        file.write_bytes(content)
    with pytest.warns(UserWarning, match="conformer-fast tune") as caught:
        tuning.use_user_table(torch.device(DEVICE))
    assert len(caught) == 1
    assert str(file) in str(caught[0].message)
    assert dispatch.table(GPU) == {}
    save(GPU, [tuned("b")])
    assert load(GPU) == {"b": FAST}


def test_a_warning_says_which_version_is_another():
    file = save(GPU, [tuned("a")])
    HashedFile(file).write(changed(triton="2.0.0")(file.read_bytes()))
    with pytest.warns(UserWarning, match=r"measured with triton 2\.0\.0, here is "):
        load(GPU)


def test_a_choice_that_was_changed_is_not_used():
    """The table is JSON and would be read."""
    file = save(GPU, [tuned("a")])
    file.write_bytes(changed(choices={"a": "pytorch"})(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{file} is damaged; `conformer-fast tune` makes a new one"):
        assert load(GPU) == {}


def test_a_table_that_was_copied_without_its_hash_is_a_warning():
    file = save(GPU, [tuned("a")])
    file.with_name(f"{file.name}.hash").unlink()
    with pytest.warns(UserWarning, match=rf"{file} has no {file.name}\.hash beside it"):
        assert load(GPU) == {}


def test_a_table_that_ships_is_added_to(tmp_path):
    """One without a hash beside it, as the GPU suite writes them."""
    first = tuning.with_added(None, GPU, [tuned("a")])
    second = tuning.with_added(first, GPU, [tuned("b", PYTORCH)])
    (tmp_path / "table.json").write_bytes(second)
    assert dispatch.read_table(tmp_path / "table.json") == {"a": FAST, "b": PYTORCH}
    of_others = changed(triton="2.0.0")(second)
    assert tuning.with_added(of_others, GPU, [tuned("a")]) == first


def test_a_table_that_may_not_be_read_is_a_warning(folder):
    file = save(GPU, [tuned("a")])
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="not used"):
        assert load(GPU) == {}


def test_the_users_table_is_used_beside_what_is_already():
    dispatch.use_table(GPU, {"a": SLOW, "b": SLOW})
    save(GPU, [tuned("a")])
    tuning.use_user_table(torch.device(DEVICE))
    assert dispatch.table(GPU) == {"a": FAST, "b": SLOW}


def test_a_folder_that_is_given_needs_no_package_to_find_it(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # importing it raises ImportError
    assert tuning.table_file(GPU).parent == folder
    monkeypatch.delenv("CONFORMER_FAST_CACHE")
    with pytest.raises(ImportError):
        tuning.table_file(GPU)


@pytest.fixture
def timer(monkeypatch) -> FakeTimer:
    """In place of the GPU's."""
    timer = FakeTimer({PYTORCH: 0.5})
    monkeypatch.setattr(tuning, "CUDATimer", lambda device: timer)
    return timer


def test_new_shapes_are_tuned_once_used_and_kept(timer):
    model = Net()
    tuning.tune_new(model, 2, 4, 4)
    assert len(timer.asked) == 2
    images = tuning.random_images(model, 2, 4, 4)
    assert {(call.choice, call.reason) for call in problems(model, images)} == {(PYTORCH, f"measured fastest on {GPU}")}
    assert load(GPU) == dispatch.table(GPU)
    tuning.tune_new(model, 2, 4, 4)
    assert len(timer.asked) == 2
    tuning.tune_new(model, 1, 4, 4)
    assert len(timer.asked) == len(load(GPU)) == 4


def test_without_a_folder_to_write_the_choices_still_count(timer, folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file")
    with pytest.warns(UserWarning, match="not kept"):
        tuning.tune_new(Net(), 1, 4, 4)
    assert len(dispatch.table(GPU)) == 2


def test_a_batch_without_room_is_left_to_the_executor(monkeypatch, timer):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Net, "forward", full)
    tuning.tune_new(Net(), 1, 4, 4)
    assert dispatch.table(GPU) == {}


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    model = Net()
    tune(model, tuning.random_images(model, 1, 4, 4), timer=FakeTimer())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("tuning" in captured.err) == terminal


class FakeCUDA:
    """As much of torch.cuda as the timer uses: a clock in milliseconds, which launches move, and graphs of launches."""

    def __init__(self) -> None:
        self.now, self.recording, self.evicted = 0.0, None, True
        self.log: list[str] = []

    def launch(self, cold: float, warm: float) -> None:
        if self.recording is not None:
            self.recording.append((cold, warm))
        else:
            self.now += cold if self.evicted else warm
            self.evicted = False

    def install(self, monkeypatch) -> None:
        outer = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                assert outer.recording is None
                self.time = outer.now

            def elapsed_time(self, end):
                return end.time - self.time

        class Graph:
            def replay(self):
                outer.log.append(f"replay {len(self.launches)}")
                for launch in self.launches:
                    outer.launch(*launch)

        class Recording:
            def __init__(self, graph, pool, stream, capture_error_mode):
                assert (pool, capture_error_mode) == ("pool", "thread_local")
                self.graph = graph

            def __enter__(self):
                outer.recording = self.graph.launches = []

            def __exit__(self, *_):
                outer.recording = None

        class Nothing(SimpleNamespace):
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        class OtherData:
            def view(self, _):
                return self

            def sum(self):
                outer.evicted = True
                outer.now += 1000  # is not to be counted

        for name, value in {
            "device": lambda _: Nothing(),
            "stream": lambda _: Nothing(),
            "synchronize": lambda *_: None,
            "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1 << 20),
            "Stream": lambda priority: SimpleNamespace(synchronize=lambda: None),
            "graph_pool_handle": lambda: "pool",
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Recording,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "zeros", lambda *_, **__: OtherData())


def test_times_are_of_a_launch_in_a_graph_after_the_weights_are_evicted(monkeypatch):
    cuda = FakeCUDA()
    cuda.install(monkeypatch)
    short, long = lambda: cuda.launch(0.021, 0.001), lambda: cuda.launch(0.5, 0.5)
    times = tuning.CUDATimer(torch.device("cuda:0"))({FAST: [short] * 20, SLOW: [long] * 20})
    assert times[FAST] == pytest.approx([(0.021 + 19 * 0.001) / 20 / 1e3] * tuning.ROUNDS)
    assert times[SLOW] == pytest.approx([0.5 / 1e3] * tuning.ROUNDS)
    assert cuda.log[2:] == ["replay 20", "replay 4"] * tuning.ROUNDS  # in turn; a graph of long launches holds fewer


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
def test_on_a_gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    model = lower(cf.create_model("digits").eval()).in_precision(torch.float16).to(device)
    images = tuning.random_images(model, 3, 64, 64)
    first, again = (tune(model, images) for _ in range(2))
    assert first.keys() == {call.plan.problem for call in problems(model, images) if not call.plan.unsupported}
    for one, other in zip(first.values(), again.values(), strict=True):
        assert one.dropped == {}
        assert 0.5e-6 < one.seconds[one.choice] < 1e-3
        assert one.seconds[one.rule] == pytest.approx(other.seconds[one.rule], rel=0.5)
    with dispatch.deciding(lambda call: PYTORCH):
        expected = model(images)
    tuning.tune_new(model, 3, 64, 64)
    assert {call.reason for call in problems(model, images)} == {f"measured fastest on {GPU}"}
    for value, before in zip(model(images), expected, strict=True):
        assert torch.allclose(value, before, rtol=0.02, atol=0.02 * before.abs().max().item())
