"""3x3 convolutions of csrc/winograd.h, and where they take the place of OpenVINO's."""

import gc
import os
import queue
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detector_samples import alike, image, small

pytest.importorskip("openvino")
pytest.importorskip("conformer_fast._C")

import conformer_fast as cf
from conformer_fast import _C
from conformer_fast.engines.openvino import engine, winograd
from conformer_fast.engines.openvino.runtime import core, ov

INSTRUCTIONS = _C.instruction_sets()
SIZES = [(1, 1, 1), (1, 4, 4), (2, 5, 3), (3, 8, 13), (1, 33, 66)]  # of the last, more tiles than are made together
CHANNELS, OUTPUTS = 64, 96
BOUND = 2e-5  # of the largest result; single products would be off by 1e-6, one point of the transforms by 1e-2
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def given(images, height, width, channels=CHANNELS, outputs=OUTPUTS):
    torch.manual_seed(0)
    maps = torch.randn(images, height, width, channels)
    weights = torch.randn(outputs, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
    return maps, weights, torch.randn(outputs)


def expected(maps, weights, bias, relu):
    result = F.conv2d(maps.permute(0, 3, 1, 2).double(), weights.double(), bias.double(), padding=1)
    return (result.relu() if relu else result).permute(0, 2, 3, 1)


def found(maps, weights, bias, relu, threads=1, instructions=""):
    out = np.full((*maps.shape[:3], len(bias)), np.nan, np.float32)
    packed = _C.winograd_weights(weights.numpy())
    _C.winograd(maps.numpy(), packed, bias.numpy(), relu, out, threads, instructions)
    return torch.from_numpy(out)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_error(instructions, size, relu):
    arguments = given(*size)
    right = expected(*arguments, relu)
    assert (found(*arguments, relu, instructions=instructions) - right).abs().max() < BOUND * right.abs().max()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_threads_and_neighbors_change_no_bit(instructions):
    maps, *rest = given(3, 41, 70)
    alone = torch.cat([found(image[None], *rest, True, instructions=instructions) for image in maps])
    for threads in (1, 2, 3, 100):
        assert torch.equal(found(maps, *rest, True, threads, instructions), alone)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_what_is_not_finite_stays_so(instructions):
    maps, weights, bias = given(1, 12, 12)
    maps[0, 6, 6, 3] = float("nan")
    result = found(maps, weights, bias, True, instructions=instructions)
    assert result[0, 5:8, 5:8].isnan().all()
    assert result[0, :3].isfinite().all()


def test_no_images():
    maps, weights, bias = given(0, 5, 5)
    assert found(maps, weights, bias, True, threads=2).shape == (0, 5, 5, OUTPUTS)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("maps", np.zeros((1, 5, 5, 32), np.float32), "maps' C, got"),
        ("maps", np.zeros((1, 5, 5, 40), np.float32), "C a multiple of 32, got .1, 5, 5, 40"),
        ("maps", np.zeros((5, 5, 64), np.float32), "maps must have shape"),
        ("weights", np.zeros((36, 3, 64, 16), np.float32), "weights must be"),
        ("weights", np.zeros((35, 3, 64, 32), np.float32), "weights must be"),
        ("bias", np.zeros(64, np.float32), "weights must be"),
        ("bias", np.zeros(90, np.float32), "K a multiple of 32"),
        ("out", np.zeros((1, 5, 5, 64), np.float32), "out must have shape .B, H, W, K., got .1, 5, 5, 64"),
        ("threads", 0, "threads must be at least 1, got 0"),
        ("instructions", "sse", "no instruction set 'sse'"),
    ],
)
def test_what_does_not_fit_together(name, value, error):
    arguments = {
        "maps": np.zeros((1, 5, 5, 64), np.float32),
        "weights": np.zeros((36, 3, 64, 32), np.float32),
        "bias": np.zeros(96, np.float32),
        "relu": True,
        "out": np.zeros((1, 5, 5, 96), np.float32),
        "threads": 1,
        "instructions": "",
    }
    _C.winograd(*arguments.values())
    with pytest.raises(ValueError, match=error):
        _C.winograd(*{**arguments, name: value}.values())


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 64, 3, 2), (48, 64, 3, 3), (64, 48, 3, 3), (0, 64, 3, 3)])
def test_weights_of_other_shapes(shape):
    with pytest.raises(ValueError, match="weights must have shape"):
        _C.winograd_weights(np.zeros(shape, np.float32))


def test_other_types_and_strides_are_refused():
    maps, weights, bias = (tensor.numpy() for tensor in given(1, 8, 8))
    packed, out = _C.winograd_weights(weights), np.zeros((1, 8, 8, OUTPUTS), np.float32)
    for wrong in (maps.astype(np.float64), maps[:, ::2]):
        with pytest.raises(TypeError):
            _C.winograd(wrong, packed, bias, True, out, 1)


FORKS = """
import os, signal, threading
import numpy as np
from conformer_fast import _C

maps, bias = np.zeros((1, 4, 4, 32), np.float32), np.zeros(32, np.float32)
packed = _C.winograd_weights(np.zeros((32, 32, 3, 3), np.float32))

def run():
    _C.winograd(maps, packed, bias, True, np.zeros_like(maps), 1)

def run_for_ever():
    while True:
        run()

for _ in range(4):
    threading.Thread(target=run_for_ever, daemon=True).start()
for _ in range(1000):
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        run()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_while_others_run():
    """What a thread holds in that moment, none gives back in the child."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], timeout=300).returncode == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="binds threads to cores")
def test_a_thread_bound_to_a_core_is_bound_again():
    """Meanwhile it has the process's cores, for the threads that it starts."""
    cores, arguments, seen = os.sched_getaffinity(0), given(1, 300, 400, 32, 32), set()
    one, started, ended, looked = {min(cores)}, queue.Queue(), queue.Queue(), threading.Event()

    def bound():
        os.sched_setaffinity(0, one)
        started.put(threading.get_native_id())
        found(*arguments, True, threads=2)
        ended.put(os.sched_getaffinity(0))
        looked.wait(60)

    thread = threading.Thread(target=bound)
    thread.start()
    number = started.get()
    while ended.empty():
        seen.add(frozenset(os.sched_getaffinity(number)))
    looked.set()
    assert ended.get() == one
    assert frozenset(cores) in seen
    assert os.sched_getaffinity(0) == cores


def convolutions(
    maps=(1, CHANNELS, 32, 48), *, weight=None, stride=1, pad=1, after="relu", bias=(1, -1, 1, 1)
) -> ov.Model:
    """maps -> a 3x3 convolution, with what `after` says behind its bias. bias: its shape, -1 for the channels."""
    op, values = ov.opset13, np.random.default_rng(0)
    if weight is None:
        weight = values.standard_normal((OUTPUTS, maps[1], 3, 3), np.float32) / 24
    image = op.parameter(list(maps), np.float32)
    result = op.convolution(image, weight, [stride] * 2, [pad] * 2, [pad] * 2, [1, 1])
    if bias:
        shape = [len(weight) if side < 0 else side for side in bias]
        result = op.add(result, values.standard_normal(shape, np.float32))
    results = {
        "relu": lambda: [op.relu(result)],
        "both": lambda: [op.relu(result), result],
        "": lambda: [result],
        "last": lambda: [op.transpose(result, [0, 2, 3, 1])],
        "computed order": lambda: [op.transpose(result, op.concat([[0], [2, 3, 1]], 0))],
    }
    return ov.Model(results[after](), [image])


def results(model: ov.Model, images: np.ndarray) -> list[np.ndarray]:
    threads = [np.array([2], np.int32)] * (len(model.inputs) - 1)
    return [value.copy() for value in core().compile_model(model, "CPU", F32)([images, *threads]).values()]


@pytest.mark.parametrize("size", [(1, CHANNELS, 32, 48), (2, CHANNELS, 23, 37), (1, CHANNELS, -1, -1)])
@pytest.mark.parametrize("after", ["relu", "both", "", "last", "computed order"])
def test_in_the_place_of_openvinos(size, after, monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_OPERATIONS", 1e7)
    model = convolutions(size, after=after)
    replaced = winograd.use_winograd(model)
    assert len(replaced.operations) == 1
    assert "Convolution" not in {node.get_type_name() for node in model.get_ops()}
    images = np.random.default_rng(1).standard_normal([side if side > 0 else 40 for side in size], np.float32)
    for ours, theirs in zip(results(model, images), results(convolutions(size, after=after), images), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < BOUND * np.abs(theirs).max()


@pytest.mark.parametrize(
    "other",
    [
        {"maps": (1, CHANNELS, 8, 16)},
        {"maps": (1, 48, 32, 48)},
        {"weight": np.zeros((80, CHANNELS, 3, 3), np.float32)},
        {"weight": np.zeros((OUTPUTS, CHANNELS, 5, 5), np.float32), "pad": 2},
        {"weight": np.zeros((OUTPUTS, CHANNELS, 1, 1), np.float32), "pad": 0},
        {"stride": 2},
        {"pad": 0},
        {"bias": ()},
        {"bias": (-1,), "maps": (1, CHANNELS, 32, OUTPUTS)},
        {"bias": (1, 1, -1, 1), "maps": (1, CHANNELS, OUTPUTS, 32)},
        {"bias": (1, 1, -1, 1, 1)},
    ],
    ids=str,
)
def test_others_stay(other, monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_OPERATIONS", 1e7)
    model = convolutions(**other)
    assert winograd.use_winograd(model).operations == []
    assert len(model.inputs) == 1


@pytest.fixture(scope="module")
def backbone():
    """Wide enough: convolutions of 32, 64 and 128 channels."""
    torch.manual_seed(0)
    config = cf.ConformerConfig(channel_ratio=2, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2)
    return cf.create_model(config, features_only=True)


def flat(values):
    return [value for one in values for value in (one if isinstance(one, tuple) else [one])]


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """How many convolutions each engine has that is loaded during the test."""
    counts, use = [], engine.use_winograd

    def counted(model):
        replaced = use(model)
        counts.append(len(replaced.operations))
        return replaced

    monkeypatch.setattr(winograd, "FEWEST_OPERATIONS", 1e6)
    monkeypatch.setattr(winograd, "FEWEST_PIXELS", 100)
    monkeypatch.setattr(engine, "use_winograd", counted)
    return counts


def compiled(model, precision="fp32", **backend):
    return cf.compile(model, backend=cf.OpenVINO(**backend), precision=precision)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("own_sizes", [0, 4])
def test_a_backbone(backbone, used, threads, own_sizes, monkeypatch):
    monkeypatch.setattr(engine, "OWN_SIZES", own_sizes)
    fast, images = compiled(backbone, threads=threads), torch.randn(3, 3, 192, 256)
    with torch.inference_mode():
        right = flat(backbone.double()(images.double()))
    backbone.float()
    for mine, reference in zip(flat(fast(images)), right, strict=True):
        assert (mine - reference).norm() < 1e-5 * reference.norm()
    assert min(used) > 0


def test_a_detector(used):
    """Its networks are within the bound of fp32, and it finds the same."""
    detector, (images, sizes) = small(), image(192, 256)
    fast = compiled(detector)
    (found,), (expected,) = fast(images, sizes), detector(images, sizes)
    assert len(expected.boxes) >= 5
    alike(found, expected)
    assert fast.verify(images).within
    assert max(used) > 1


def test_small_images_run_several_at_once(backbone, used):
    """And those that are left one by one: by another engine."""
    fast, images = compiled(backbone, threads=1), torch.randn(engine.SMALL_IMAGES + 1, 3, 96, 96)
    together = flat(fast(images))
    assert len(used) == 2
    for row, single in enumerate(images):
        for mine, alone in zip(together, flat(fast(single[None])), strict=True):
            assert (mine[row] - alone[0]).norm() < 1e-5 * alone.norm()
    assert len(used) == 2


def test_its_engines_are_not_stored(backbone, used, own_cache, tmp_path):
    fast, images = compiled(backbone), torch.randn(1, 3, 192, 256)
    before = flat(fast(images))
    assert [count > 0 for count in used] == [True]
    fast.save(tmp_path / "bundle")
    assert not [*(tmp_path / "bundle").glob("*.engine")]
    for mine, stored in zip(before, flat(cf.load(tmp_path / "bundle")(images)), strict=True):
        assert torch.equal(mine, stored)


@pytest.fixture
def made(monkeypatch) -> list[weakref.ref]:
    """Every operation that is made during the test."""
    operations, make = [], winograd.Convolution3x3.__init__

    def counted(operation, *arguments):
        make(operation, *arguments)
        operations.append(weakref.ref(operation))

    monkeypatch.setattr(winograd.Convolution3x3, "__init__", counted)
    return operations


@pytest.mark.parametrize("own_sizes", [0, 4])
def test_nothing_stays_of_an_engine_that_is_gone(backbone, used, made, own_sizes, monkeypatch):
    """Nor of a run of one for any size, which asks for the shapes of its maps."""
    monkeypatch.setattr(engine, "OWN_SIZES", own_sizes)
    fast, images = compiled(backbone, threads=1), torch.randn(1, 3, 192, 256)
    for _ in range(3):
        fast(images)
    gc.collect()
    assert sum(operation() is not None for operation in made) == sum(used) > 0
    del fast  # not before the garbage is collected, which may be long after
    assert [operation for operation in made if operation() is not None] == []


def test_small_maps_stay_openvinos(backbone, used, own_cache, builds, monkeypatch):
    """Whose engines are stored."""
    monkeypatch.setattr(winograd, "FEWEST_OPERATIONS", 0.5e9)
    compiled(backbone)(torch.randn(1, 3, 64, 64))
    assert used == [0]
    assert [fields["height"] for fields in builds] == [64]


def test_where_nothing_is_asked(small_model, backbone, used, monkeypatch):
    """A classifier, other precisions, and without csrc/."""
    images = torch.randn(1, 3, 192, 256)
    compiled(small_model)(images)
    if "bf16" in cf.OpenVINO().precisions().native:
        compiled(backbone, "bf16")(images)
    monkeypatch.setattr(engine, "winograd_is_faster", lambda: False)
    compiled(backbone)(images)
    assert used == []


@pytest.mark.parametrize(
    ("where", "name", "value", "faster"),
    [
        (winograd, "unusable", "", INSTRUCTIONS != ["portable"]),
        (winograd, "unusable", "it was not built", False),
        (_C, "instruction_sets", ["portable"], False),
    ],
)
def test_where_it_is_faster(where, name, value, faster, monkeypatch):
    monkeypatch.setattr(where, name, lambda: value)
    assert winograd.winograd_is_faster.__wrapped__() == faster
