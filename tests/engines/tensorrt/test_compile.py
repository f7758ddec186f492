"""compile(backend="tensorrt"): what is built, kept, run and saved; on a pretended TensorRT, without a GPU."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import onnx
import pytest
import torch
from fake_cuda import DEVICE, fake_cuda
from fake_tensorrt import TensorRT, plan

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines.registry import BACKENDS
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.engines.tensorrt import plan as builder_module

pytest.importorskip("onnx")

PROFILE = cf.Shapes((1, 2, 4), (32, 32, 64), (32, 32, 64))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU and TensorRT; `built` holds the options of each engine that was built."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    built = []

    def engine_from_onnx(onnx, profiles, flavor, targets, precision):
        built.append(SimpleNamespace(onnx=onnx, profiles=profiles, targets=targets, precision=precision))
        return plan([profile.with_channels(3) for profile in profiles])

    with fake_cuda() as cuda:
        tensorrt = replace(BACKENDS["tensorrt"], missing=lambda: None, device=lambda: str(DEVICE))
        monkeypatch.setitem(BACKENDS, "tensorrt", tensorrt)
        trt = TensorRT(cuda)
        monkeypatch.setattr(flavors, "get_flavor", lambda name="auto": trt.flavor)
        monkeypatch.setattr(flavors, "gpu_target", lambda: "sm86")
        monkeypatch.setattr(builder_module, "gpu_target", lambda: "sm86")
        monkeypatch.setattr(builder_module, "engine_from_onnx", engine_from_onnx)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended 4090")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        yield SimpleNamespace(built=built, trt=trt)


def compiled(model, **options):
    return cf.compile(model, backend="tensorrt", **{"profile": PROFILE, **options})


def test_engine_is_built_for_the_profile_and_runs(machine, small_model):
    fast = compiled(small_model)
    (engine,) = machine.built
    assert (engine.profiles, engine.targets, engine.precision) == ([PROFILE], (), "fp16")
    output = fast(torch.randn(3, 3, 32, 48))
    assert isinstance(output, cf.ConformerOutput)
    assert output.conv_logits.shape == (3, 2)  # the pretended engine's
    assert fast.reason == "tensorrt fp16: the fastest precision of the GPU"


def test_default_profile(machine, small_model):
    fast = cf.compile(small_model, backend="tensorrt")
    assert fast.settings.profile == cf.Shapes((1, 8, 64), (224, 224, 224), (224, 224, 224))
    with pytest.raises(ValueError, match="takes batch 1 to 64, height 224, width 224"):
        fast(torch.randn(1, 3, 32, 32))


def test_second_compile_builds_nothing(machine, small_model):
    compiled(small_model)
    compiled(small_model)
    assert len(machine.built) == 1
    compiled(small_model, precision="bf16")
    compiled(small_model, profile=cf.Shapes((1, 1, 1), (32, 32, 32), (32, 32, 32)))
    small_model.conv_trans_2.trans_block.mlp.fc1.weight.data[0, 0] += 1
    compiled(small_model)
    assert len(machine.built) == 4


def test_copies_have_the_same_engine(machine, small_model):
    fast = compiled(small_model)
    twin = copy.deepcopy(fast)
    images = torch.randn(2, 3, 32, 32)
    assert twin.settings == fast.settings
    assert all(torch.equal(*pair) for pair in zip(fast.run(images), twin.run(images), strict=True))
    assert len(machine.built) == 1


def test_save_and_load(machine, small_model, tmp_path, monkeypatch):
    fast = compiled(small_model)
    folder = fast.save(tmp_path / "bundle", key=b"secret")
    assert len(machine.built) == 1  # the same engine, from the cache
    manifest = read_bundle(folder, b"secret").manifest
    assert manifest.profiles == (PROFILE,)
    version = machine.trt.flavor.version
    here = {"flavor": "tensorrt", "version": version, "targets": ["sm86"], "gpu": "Pretended 4090"}
    assert manifest.runtime == here
    assert json.loads((folder / "model.plan").read_bytes())["outputs"]
    monkeypatch.setattr(cf.bundle, "_device_here", lambda manifest: str(DEVICE))
    images = torch.randn(2, 3, 32, 32)
    loaded = cf.load(folder, key=b"secret")
    assert all(torch.equal(*pair) for pair in zip(fast.run(images), loaded.run(images), strict=True))


@pytest.mark.parametrize("backend", ["reference", "openvino"])
def test_others_take_no_profile(backend, small_model):
    if BACKENDS[backend].missing():
        pytest.skip(f"no {backend} here")
    with pytest.raises(cf.BackendError, match="only the backend 'tensorrt' takes a profile"):
        cf.compile(small_model, backend=backend, profile=PROFILE)


def test_it_cannot_be_tuned(machine, small_model):
    with pytest.raises(cf.BackendError, match="only the backend 'triton' can be tuned"):
        compiled(small_model, tune=True)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_need_images(precision, machine, small_model):
    with pytest.raises(ValueError, match=f"precision '{precision}' takes its ranges from images"):
        compiled(small_model, precision=precision)
    assert machine.built == []


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_of_images(precision, machine, small_model):
    compiled(small_model, precision=precision, calibration=[torch.randn(4, 3, 32, 32)])
    (engine,) = machine.built
    nodes = onnx.load_from_string(engine.onnx).graph.node
    assert engine.precision == precision
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 20


def test_without_a_gpu(small_model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(cf.BackendError, match="'tensorrt' cannot run here: no CUDA device"):
        compiled(small_model)
