"""Offline tuning: what is measured and how, and new shapes tuned as they come."""

from __future__ import annotations

import sys

import pytest
import torch
from kernel_checks import DEVICE, DTYPES
from torch import Tensor, nn
from tuning_samples import GPU, FakeTimer, Net, problems

import conformer_fast as cf
from conformer_fast.engines.triton import tuning
from conformer_fast.engines.triton.tuning import load, tune
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.dispatch import PYTORCH
from conformer_fast.model.precision import FORMATS

pytestmark = pytest.mark.usefixtures("folder")


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


@pytest.mark.parametrize("kept", [False, True], ids=["in-16", "kept"])
@pytest.mark.parametrize("precision", FORMATS)
def test_no_tile_of_a_product_in_8_bits_is_dropped(precision, kept):
    """Candidates are compared with the same numbers summed in float64."""
    quantization, model = Quantization(precision, {"second": 3.0}), Net()
    model.second.quantize("second", quantization)
    keywords = {**model.second.scales(), **(model.second.as_read() if kept else {})}
    model.forward = lambda images: ops.conv1x1(images.permute(0, 2, 3, 1).contiguous(), *model.second(), **keywords)
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
        assert torch.allclose(launches[-1](), expected, atol=1e-2)


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


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    model = Net()
    tune(model, tuning.random_images(model, 1, 4, 4), timer=FakeTimer())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("tuning" in captured.err) == terminal


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
