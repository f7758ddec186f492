"""The backend "triton": what its bundles hold, and what is refused of them; the GPU is pretended, and is the CPU."""

import json
import warnings
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from bundle_samples import images, rewrite, saved
from eight_bits import largest_inputs
from fake_cuda import fake_cuda
from torch import nn

import conformer_fast as cf
from conformer_fast import Conformer
from conformer_fast.engines.triton import backend as backend_module
from conformer_fast.engines.triton import tuning
from conformer_fast.errors import BundleError, EngineMismatchError
from conformer_fast.inference.lower import blank, lower
from conformer_fast.inference.quantization import Quantization, addend_of
from conformer_fast.kernels import dispatch
from conformer_fast.model.precision import FORMATS

GPU = tuning.gpu_name(torch.device("cpu"))


@pytest.mark.parametrize(("heads", "norm"), [(True, True), (False, False), (False, True)])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_blank_model_has_every_weight_but_no_values(precision, heads, norm, small_config):
    def described(model):
        return {name: (x.shape, x.stride(), x.dtype) for name, x in model.state_dict().items()}

    model = Conformer(small_config, features_only=not heads)
    if norm and not heads:
        model.trans_norm = nn.LayerNorm(small_config.embed_dim)
    state = torch.get_rng_state()
    empty = blank(small_config, ["3.map"], precision, heads=heads, norm=norm)
    assert torch.equal(torch.get_rng_state(), state)
    assert described(empty) == described(lower(model.eval(), precision=precision))
    assert empty.outputs == ("3.map",)
    assert {weight.device.type for weight in empty.buffers()} == {"meta"}


@pytest.fixture
def engines(monkeypatch):
    """The networks that engines were made of, and what tunes them, in order."""
    made, original = [], backend_module.CUDAGraphEngine

    def spy(network, tune=None):
        made.append(SimpleNamespace(network=network, tune=tune))
        return original(network, tune)

    monkeypatch.setattr(backend_module, "CUDAGraphEngine", spy)
    return made


def assert_same_weights(ours, theirs):
    """The same values, as they lie in memory."""
    ours, theirs = dict(ours.named_buffers()), dict(theirs.named_buffers())
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.stride()) == (theirs[name].dtype, theirs[name].stride())
        assert torch.equal(tensor.float(), theirs[name].float())


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_weights_come_back_as_the_kernels_read_them(precision, small_model, tmp_path, engines):
    with fake_cuda():
        cf.load(cf.compile(small_model, backend="triton", precision=precision).save(tmp_path / "bundle"))
    compiled, loaded = engines
    assert_same_weights(loaded.network, compiled.network)
    assert loaded.tune is compiled.tune is None


def test_both_can_be_tuned(small_model, tmp_path, engines):
    with fake_cuda():
        fast = cf.compile(small_model, backend="triton", precision="fp16", tune=True)
        loaded = cf.load(fast.save(tmp_path / "bundle"), tune=True)
    assert [engine.tune for engine in engines] == [tuning.tune_new] * 2
    assert fast.settings == loaded.settings


@pytest.mark.parametrize("precision", FORMATS)
def test_weights_in_8_bits_come_back(precision, small_model, tmp_path, engines):
    """All products but one, as after an accuracy gate."""
    ranges = largest_inputs(lower(small_model), [images(2, 3, 32, 32)])
    del ranges["conv_trans_2.up"], ranges[addend_of("conv_1.conv3")]
    quantization = Quantization(precision, ranges)
    with fake_cuda():
        fast = cf.compile(small_model, backend="triton", precision=precision, quantization=quantization)
        loaded = cf.load(fast.save(tmp_path / "bundle"))
    assert loaded.manifest.precisions == {
        "products, and what only they read": precision,
        "attention, heads": "fp16",
        "tokens, norms": "fp32",
    }
    ours, theirs = engines[1].network, lower(small_model, fast.outputs, "fp16", quantization)
    assert_same_weights(ours, theirs)
    batch = images(2, 3, 32, 32)
    assert all(map(torch.equal, ours(batch), theirs(batch)))


def test_scales_of_no_product_are_refused(small_model, tmp_path):
    with fake_cuda():
        fast = cf.compile(small_model, backend="triton", precision="int8", quantization=[images(2, 3, 32, 32)])
        folder = fast.save(tmp_path / "bundle")
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        rewrite(folder, "model.safetensors", changed(weights, "conv_head.weight_scale", torch.ones(1)))
        with pytest.raises(BundleError, match=r"no products .*conv_head"):
            cf.load(folder)


def test_no_gpu(small_model, tmp_path):
    with fake_cuda():
        folder = saved(tmp_path / "bundle", "triton", small_model)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EngineMismatchError, match=r"GPU must be one .* here it is none: no CUDA device") as caught:
        cf.load(folder)
    assert caught.value.field == "GPU"


@pytest.fixture
def no_tiles():
    """Forgets what was tuned here, and does so before and after: no_tiles()."""

    def forget() -> None:
        for gpu in (GPU, "another"):
            dispatch.use_table(gpu, {})

    forget()
    yield forget
    forget()


def test_tuned_tiles_go_with_the_weights(small_model, tmp_path, no_tiles):
    choices = {"a problem": tuning.Tile(64, 64, 32, 4, 3), "another": "pytorch"}
    with fake_cuda():
        dispatch.use_table(GPU, choices)
        folder = saved(tmp_path / "bundle", "triton", small_model)
        assert json.loads((folder / "tiles.json").read_text()) == {
            GPU: {"a problem": [64, 64, 32, 4, 3], "another": "pytorch"}
        }
        no_tiles()
        dispatch.use_table(GPU, {"another": tuning.Tile(16, 16, 16, 4, 1), "a third": "pytorch"})
        cf.load(folder)
        assert dispatch.table(GPU) == {**choices, "a third": "pytorch"}


def test_tiles_of_another_gpu_are_not_used(small_model, tmp_path, no_tiles, monkeypatch):
    with fake_cuda():
        dispatch.use_table(GPU, {"a problem": "pytorch"})
        folder = saved(tmp_path / "bundle", "triton", small_model)
        no_tiles()
        monkeypatch.setattr(tuning, "gpu_name", lambda device: "another")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cf.load(folder)
    assert dispatch.table(GPU) == dispatch.table("another") == {}


@pytest.mark.parametrize("other", ["torch", "conformer_fast"])
def test_tiles_of_other_versions_are_not_used(other, small_model, tmp_path, no_tiles, monkeypatch):
    with fake_cuda():
        dispatch.use_table(GPU, {"a problem": "pytorch"})
        folder = saved(tmp_path / "bundle", "triton", small_model)
        no_tiles()
        elsewhere = {**tuning.versions(), other: "3.0"}
        monkeypatch.setattr(tuning, "versions", lambda: elsewhere)
        with pytest.warns(UserWarning, match=r"tuned tiles are not used: .* here is .*3\.0.*`conformer-fast tune`"):
            cf.load(folder)
    assert dispatch.table(GPU) == {}


def changed(weights: dict[str, torch.Tensor], name: str, value: torch.Tensor | None) -> bytes:
    others = {known: tensor for known, tensor in weights.items() if known != name}
    return safetensors.torch.save(others if value is None else {**others, name: value})


WEIGHTS = {
    "missing": (lambda weights: changed(weights, "stem.bias", None), "1 weights differ; stem.bias is None, must be"),
    "unknown": (lambda weights: changed(weights, "more", torch.zeros(1)), "1 weights differ; more is .* must be None"),
    "shape": (lambda weights: changed(weights, "stem.bias", torch.zeros(1)), r"stem.bias is \(\(1,\), torch.float32\)"),
    "type": (lambda weights: changed(weights, "stem.bias", torch.zeros(64).half()), "stem.bias is .*float16.*float32"),
    "no heads": (lambda weights: changed(weights, "conv_head.weight", None), "no such outputs"),
    "not safetensors": (lambda weights: b"7" * 1000, "does not hold what its manifest says"),
    "empty": (lambda weights: b"", "does not hold what its manifest says"),
}


@pytest.mark.parametrize(("change", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_wrong_weights_under_a_right_hash(change, message, small_model, tmp_path):
    with fake_cuda():
        folder = saved(tmp_path / "bundle", "triton", small_model)
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        rewrite(folder, "model.safetensors", change(weights))
        with pytest.raises(BundleError, match=message):
            cf.load(folder)


TILES = [
    b"[" * 100_000 + b"]" * 100_000,
    *(b"", b"[]", b"{", b'{"%s": []}', b'{"%s": {"a problem": [1]}}', b'{"%s": {"a": 7}}'),
    *(b'{"%s": {"a": "anything"}}', b'{"%s": {"a": ["a", "b", null, 0, -1]}}'),
]


@pytest.mark.parametrize("tiles", TILES)
def test_wrong_tiles_under_a_right_hash(tiles, small_model, tmp_path):
    with fake_cuda():
        folder = saved(tmp_path / "bundle", "triton", small_model)
        rewrite(folder, "tiles.json", tiles.replace(b"%s", GPU.encode()))
        with pytest.raises(BundleError, match="does not hold what its manifest says"):
            cf.load(folder)
