"""compile() end to end: everything it takes, on every backend, from many threads, at any size."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import lookalikes
import numpy as np
import pytest
import safetensors.torch
import torch
from fake_cuda import fake_cuda
from PIL import Image
from torch import nn

import conformer_fast as cf
from conformer_fast import Conformer, ConformerConfig, ConformerFeatures, ConformerOutput
from conformer_fast.engines.module import LARGEST
from conformer_fast.errors import BackendError
from conformer_fast.preprocessing.cpu import preprocess

CONFIG = ConformerConfig(embed_dim=64, num_heads=1, depth=3, channel_ratio=1, mlp_ratio=3, num_classes=7)
SIZES = [(16, 16), (48, 64), (33, 47), (16, 90)]  # one patch; whole patches; padded both ways; one patch high
TOLERANCE = 1e-5  # relative error of a whole tensor; two fp32 runs of this model differ by 1e-6


def evaluated(model: nn.Module) -> nn.Module:
    """Filled, in eval mode; `.eval()` of mmpretrain's backbone returns nothing."""
    lookalikes.fill(model)
    model.eval()
    return model


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same_structure(ours, theirs) -> bool:
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor)
    return (
        type(ours) is type(theirs)
        and len(ours) == len(theirs)
        and all(same_structure(*parts) for parts in zip(ours, theirs, strict=True))
    )


def leaves(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [leaf for part in value for leaf in leaves(part)]


def assert_same(ours, theirs) -> None:
    """The same nest of containers, with tensors of the same shapes that differ by rounding alone."""
    assert same_structure(ours, theirs)
    for mine, their in zip(leaves(ours), leaves(theirs), strict=True):
        assert mine.shape == their.shape
        assert mine.dtype == torch.float32
        assert (mine - their).norm() <= TOLERANCE * their.norm()


def bitwise_equal(ours, theirs) -> bool:
    return all(torch.equal(mine, their) for mine, their in zip(leaves(ours), leaves(theirs), strict=True))


@pytest.fixture(scope="module", params=["reference", "openvino", "triton"])
def backend(request):
    """Each backend. The GPU of "triton" is pretended, and is the CPU."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
        pytest.importorskip("onnx")
    with fake_cuda() if request.param == "triton" else nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def compiled(backend):
    return cf.compile(evaluated(Conformer(CONFIG)), backend=backend, precision="fp32")


MODULES = {
    "classifier": lambda: Conformer(CONFIG),
    "features": lambda: Conformer(CONFIG, features_only=True),
    "official": lambda: lookalikes.OfficialConformer(CONFIG),
    "mmpretrain": lambda: lookalikes.MMPretrainClassifier(CONFIG),
    "mmpretrain-backbone": lambda: lookalikes.MMPretrainBackbone(CONFIG, [2, 3]),
    "mmdetection": lambda: lookalikes.MMDetectionBackbone(CONFIG),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_module(make, backend):
    module = evaluated(make())
    before = copy.deepcopy(module.state_dict())
    gradients = [parameter.requires_grad for parameter in module.parameters()]

    compiled = cf.compile(module, backend=backend, precision="fp32")
    batch = images(3, 3, 48, 64)
    with torch.no_grad():
        expected = module(batch)
    assert_same(compiled(batch), expected)

    assert isinstance(compiled, nn.Module)
    assert not [*compiled.parameters(), *compiled.buffers()]
    assert not compiled.training
    assert (compiled.settings.backend.name, compiled.settings.precision) == (backend, "fp32")
    assert not module.training
    assert [parameter.requires_grad for parameter in module.parameters()] == gradients
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_torch_compiled_module(backend):
    model = evaluated(Conformer(CONFIG, features_only=True))
    wrapped = torch.compile(model, backend="eager")
    batch = images(2, 3, 48, 64)
    with torch.no_grad():
        assert_same(cf.compile(wrapped, backend=backend, precision="fp32")(batch), model(batch))


def test_later_changes_of_the_model_do_not_reach_the_compiled_one(backend):
    model = evaluated(Conformer(CONFIG))
    compiled = cf.compile(model, backend=backend, precision="fp32")
    batch = images(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(batch)
        for parameter in model.parameters():
            parameter.add_(1)
    assert_same(compiled(batch), expected)


def detector_state():
    backbone = evaluated(lookalikes.MMDetectionBackbone(CONFIG)).state_dict()
    return {f"backbone.{name}": tensor for name, tensor in backbone.items()} | {"neck.weight": torch.ones(2)}


STATES = {  # a state dict, and whether it has heads
    "official": (lambda: evaluated(lookalikes.OfficialConformer(CONFIG)).state_dict(), True),
    "mmpretrain": (lambda: evaluated(lookalikes.MMPretrainClassifier(CONFIG)).state_dict(), True),
    "mmpretrain-backbone": (lambda: evaluated(lookalikes.MMPretrainBackbone(CONFIG)).state_dict(), False),
    "mmdetection": (detector_state, False),
}


@pytest.mark.parametrize(("make", "has_heads"), STATES.values(), ids=STATES)
def test_state_dict(make, has_heads, backend):
    state = make()
    before = {name: tensor.clone() for name, tensor in state.items()}
    batch = images(2, 3, 48, 64)
    result = cf.compile(state, backend=backend, precision="fp32")(batch)
    assert type(result) is (ConformerOutput if has_heads else ConformerFeatures)
    with torch.no_grad():
        assert_same(result, evaluated(Conformer(CONFIG, features_only=not has_heads))(batch))
    assert list(state) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_checkpoint(name, as_text, tmp_path, backend):
    path = tmp_path / name
    model = evaluated(Conformer(CONFIG))
    if path.suffix == ".pth":
        torch.save({"state_dict": evaluated(lookalikes.MMPretrainClassifier(CONFIG)).state_dict(), "meta": {}}, path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    batch = images(2, 3, 48, 64)
    with torch.no_grad():
        expected = model(batch)
    assert_same(cf.compile(str(path) if as_text else path, backend=backend, precision="fp32")(batch), expected)


def test_compiled_model_is_not_compiled_again(compiled):
    with pytest.raises(TypeError, match="the model is compiled already"):
        cf.compile(compiled)


def default_dtype(dtype):
    class Context:
        def __enter__(self):
            self.before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)

        def __exit__(self, *_):
            torch.set_default_dtype(self.before)

    return Context()


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_surroundings_change_nothing(surroundings, backend):
    module = evaluated(lookalikes.MMPretrainClassifier(CONFIG))
    batch = images(3, 3, 32, 32)
    expected = cf.compile(module, backend=backend, precision="fp32")(batch)
    with surroundings():
        result = cf.compile(module, backend=backend, precision="fp32")(batch)
    assert bitwise_equal(result, expected)
    assert {tensor.dtype for tensor in result} == {torch.float32}
    assert {tensor.device.type for tensor in result} == {"cpu"}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
def test_any_batch_and_size(size, compiled):
    model = evaluated(Conformer(CONFIG))
    for batch_size in (1, 2, 3, 7):
        batch = images(batch_size, 3, *size)
        with torch.no_grad():
            assert_same(compiled(batch), model(batch))


def test_one_channel_and_one_class(backend):
    model = evaluated(
        Conformer(ConformerConfig(embed_dim=32, num_heads=2, depth=3, channel_ratio=1, num_classes=1, in_channels=1))
    )
    batch = images(3, 1, 40, 24)
    with torch.no_grad():
        assert_same(cf.compile(model, backend=backend, precision="fp32")(batch), model(batch))


def test_patches_of_32(backend):
    config = ConformerConfig(patch_size=32, embed_dim=64, num_heads=1, depth=3, channel_ratio=1, num_classes=7)
    model = evaluated(Conformer(config))
    batch = images(2, 3, 70, 33)
    with torch.no_grad():
        assert_same(cf.compile(model, backend=backend, precision="fp32")(batch), model(batch))


def test_depth_of_six(backend):
    config = ConformerConfig(embed_dim=32, num_heads=2, depth=6, channel_ratio=1, mlp_ratio=1, num_classes=7)
    model = evaluated(Conformer(config, features_only=True))
    batch = images(2, 3, 48, 32)
    with torch.no_grad():
        expected = model(batch)
    assert len(expected.maps) == 4
    assert_same(cf.compile(model, backend=backend, precision="fp32")(batch), expected)


@pytest.mark.parametrize("neighbor", [0.0, 1e4, LARGEST], ids=["zeros", "large", "largest"])
def test_neighbors_do_not_matter(neighbor, compiled):
    batch = images(5, 3, 32, 48)
    among_others = compiled(batch)
    for index in range(len(batch)):
        changed = torch.full_like(batch, neighbor)
        changed[index] = batch[index]
        result = compiled(changed)
        for mine, other in zip(leaves(result), leaves(among_others), strict=True):
            assert torch.equal(mine[index], other[index])
        for mine, other in zip(leaves(compiled(batch[index : index + 1])), leaves(among_others), strict=True):
            assert (mine[0] - other[index]).norm() <= TOLERANCE * other[index].norm()


def test_images_are_read_only_and_results_the_callers_own(compiled):
    batch = images(3, 3, 32, 32)
    kept = batch.clone()
    first = compiled(batch)
    values = [tensor.clone() for tensor in leaves(first)]
    assert torch.equal(batch, kept)
    batch.zero_()
    second = compiled(batch)
    assert bitwise_equal(first, values)
    assert not any(torch.equal(*pair) for pair in zip(leaves(first), leaves(second), strict=True))
    assert not any(tensor.requires_grad for tensor in leaves(first))


def test_many_threads_at_once(compiled):
    batches = [images(B, 3, *size, seed=B) for B in range(1, 6) for size in ((32, 32), (40, 24))]
    serial = [compiled(batch) for batch in batches]
    start = threading.Barrier(8)

    def work(thread: int) -> list[int]:
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(thread)).tolist()
        start.wait()
        return [index for index in order if not bitwise_equal(compiled(batches[index]), serial[index])]

    with ThreadPoolExecutor(8) as pool:
        wrong = list(pool.map(work, range(8)))
    assert wrong == [[]] * 8


def test_first_calls_from_many_threads_at_once(backend):
    """Building is shared too: no engine exists when they start."""
    module = evaluated(Conformer(CONFIG))
    batches = [images(B, 3, *size, seed=B) for B in (1, 2, 3) for size in ((32, 32), (24, 40))]
    serial = [cf.compile(module, backend=backend, precision="fp32")(batch) for batch in batches]
    fresh = cf.compile(module, backend=backend, precision="fp32")
    start = threading.Barrier(len(batches))

    def work(index: int) -> bool:
        start.wait()
        return bitwise_equal(fresh(batches[index]), serial[index])

    with ThreadPoolExecutor(len(batches)) as pool:
        assert all(pool.map(work, range(len(batches))))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_pixels_are_normalized_as_preprocess_does(layout, backend):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    expected = preprocess(picture, 42)  # a short edge of 48: nothing is resized
    pixels = torch.from_numpy(np.array(picture))[3:45, 3:45].permute(2, 0, 1)
    compiled = cf.compile(evaluated(Conformer(CONFIG)), backend=backend, precision="fp32")
    batch = torch.stack([pixels, pixels.flip(-1)]).contiguous(memory_format=layout)
    before = batch.clone()
    assert torch.equal(compiled.as_input(batch)[0], expected)
    assert_same(compiled(batch), compiled(torch.stack([expected, expected.flip(-1)])))
    assert torch.equal(batch, before)


def test_device_is_where_images_must_be(compiled):
    assert compiled.device == torch.device("cpu")
    assert compiled.settings.device == "cpu"


def test_repr_tells_how_it_runs(compiled, backend):
    assert repr(compiled) == f"FastConformer({compiled.reason})"
    assert compiled.reason.startswith(f"{backend} fp32: as asked")


def test_copies_and_pickles_compute_the_same(backend):
    fast = cf.compile(cf.create_model("digits", weights="packaged"), backend=backend)
    images = torch.randn(2, 3, 64, 64)
    expected = fast(images)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert (other.reason, other.settings) == (fast.reason, fast.settings)
        assert torch.equal(other(images).logits, expected.logits)


def test_only_kernels_are_tuned(small_model):
    with pytest.raises(BackendError, match="backend 'reference' has no option tune; it has none"):
        cf.compile(small_model, backend="reference", precision="fp32", tune=True)


def test_tuning_is_asked_for(small_model, monkeypatch):
    """The first call of a shape tunes it if compile() was told to, in copies too; otherwise nothing is measured."""
    from conformer_fast.engines.triton import tuning

    tuned = []
    monkeypatch.setattr(tuning, "tune_new", lambda model, *key: tuned.append(key))
    with fake_cuda():
        for tune in (False, True):
            fast = cf.compile(small_model, backend="triton", precision="fp32", tune=tune)
            fast(torch.randn(3, 3, 32, 32))
            copy.deepcopy(fast)(torch.randn(1, 3, 32, 32))
    assert tuned == [(4, 32, 32), (1, 32, 32)]
