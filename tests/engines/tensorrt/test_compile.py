"""compile(backend="tensorrt"): what is built, kept, run and saved; on a pretended TensorRT, without a GPU."""

import copy
import hashlib
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import DEVICE, fake_cuda
from fake_tensorrt import TensorRT, plan

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines import cache as engines
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import backend as backend_module
from conformer_fast.engines.tensorrt import plan as plan_module

onnx = pytest.importorskip("onnx")

SHAPES = cf.Shapes((1, 2, 4), (32, 32, 64), (32, 32, 64))
LARGER = cf.Shapes((8, 8, 16), (64, 64, 64), (64, 64, 64))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU and TensorRT; `built` holds the options of each engine that was built."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    built = []

    def engine_from_onnx(onnx, shapes, flavor, targets, precision):
        built.append(SimpleNamespace(onnx=onnx, shapes=shapes, targets=targets, precision=precision))
        return plan([taken.with_channels(3) for taken in shapes])

    with fake_cuda() as cuda:
        monkeypatch.setattr(backend_module.TensorRT, "missing", lambda self: None)
        monkeypatch.setattr(backend_module.TensorRT, "torch_device", lambda self: str(DEVICE))
        trt = TensorRT(cuda)
        monkeypatch.setattr(backend_module, "get_flavor", lambda name="auto": trt.flavor)
        for module in (backend_module, plan_module):
            monkeypatch.setattr(module, "gpu_target", lambda: "sm86")
        monkeypatch.setattr(plan_module, "engine_from_onnx", engine_from_onnx)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended 4090")
        yield SimpleNamespace(built=built, trt=trt)


def compiled(model, **options):
    return cf.compile(model, backend="tensorrt", **{"shapes": SHAPES, **options})


def test_engine_is_built_for_its_shapes_and_runs(machine, small_model):
    fast = compiled(small_model)
    (engine,) = machine.built
    assert (engine.shapes, engine.targets, engine.precision) == ((SHAPES,), (), "fp16")
    output = fast(torch.randn(3, 3, 32, 48))
    assert isinstance(output, cf.ConformerOutput)
    assert output.conv_logits.shape == (3, 2)  # the pretended engine's
    assert fast.reason == "tensorrt fp16: the fastest precision of the GPU"
    assert fast.shapes == (SHAPES,)


def test_default_shapes(machine, small_model):
    fast = cf.compile(small_model, backend="tensorrt")
    assert fast.shapes == (cf.Shapes((1, 8, 64), (224, 224, 224), (224, 224, 224)),)
    with pytest.raises(ValueError, match="takes batch 1 to 64, height 224, width 224"):
        fast(torch.randn(1, 3, 32, 32))


def test_the_class_takes_the_options_too(machine, small_model):
    fast = cf.compile(small_model, backend=backend_module.TensorRT(shapes=[SHAPES, LARGER]))
    assert fast.shapes == machine.built[0].shapes == (SHAPES, LARGER)
    assert fast(torch.randn(9, 3, 64, 64)).conv_logits.shape == (9, 2)
    with pytest.raises(cf.BackendError, match=r"the options shapes belong to the backend's class: TensorRT\(...\)"):
        cf.compile(small_model, backend=backend_module.TensorRT(), shapes=SHAPES)


def test_second_compile_builds_nothing(machine, small_model):
    compiled(small_model)
    compiled(small_model)
    assert len(machine.built) == 1
    (entry,) = engines.cached_engines()  # no version of ours: the graph says what it is
    assert set(entry.fields) == {"backend", "precision", "onnx", "shapes", "flavor", "version", "targets", "gpu"}
    assert entry.fields["version"] == machine.trt.flavor.version
    compiled(small_model, precision="bf16")
    compiled(small_model, shapes=cf.Shapes((1, 1, 1), (32, 32, 32), (32, 32, 32)))
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


def test_save_and_load(machine, small_model, tmp_path):
    fast = compiled(small_model)
    folder = fast.save(tmp_path / "bundle", key=b"a secret of 24 bytes ...")
    manifest = read_bundle(folder, format_of, b"a secret of 24 bytes ...").manifest
    assert manifest.shapes == (SHAPES,)
    assert manifest.runtime == {
        "flavor": "tensorrt",
        "version": machine.trt.flavor.version,
        "targets": ["sm86"],
        "gpu": "Pretended 4090",
    }
    (engine,) = machine.built
    assert manifest.sha256["onnx"] == hashlib.sha256(engine.onnx).hexdigest()
    assert json.loads((folder / "model.plan").read_bytes())["outputs"]
    images = torch.randn(2, 3, 32, 32)
    loaded = cf.load(folder, key=b"a secret of 24 bytes ...")
    assert (loaded.shapes, loaded.reason) == ((SHAPES,), "tensorrt fp16: from bundle")
    assert all(torch.equal(*pair) for pair in zip(fast.run(images), loaded.run(images), strict=True))


@pytest.mark.parametrize("keeps", [True, False], ids=["kept", "no cache"])
def test_saving_builds_no_second_engine(keeps, machine, small_model, tmp_path, monkeypatch):
    if not keeps:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "file" / "cache"))
    with nullcontext() if keeps else pytest.warns(UserWarning, match="engines are not kept in"):
        fast = compiled(small_model)
    engines.clear_cache()
    folder = fast.save(tmp_path / "bundle")
    copied = cf.load(folder).save(tmp_path / "copy")
    assert len(machine.built) == 1
    assert (copied / "model.plan").read_bytes() == (folder / "model.plan").read_bytes()


def test_the_bundle_says_how_to_make_it_again(machine, small_model, tmp_path):
    """On another machine, so it names no target."""
    folder = compiled(small_model, precision="int8", quantization=[torch.randn(4, 3, 32, 32)]).save(tmp_path / "bundle")
    assert read_bundle(folder, format_of).manifest.rebuild == (
        f"conformer_fast.compile(model, backend='tensorrt', precision='int8', shapes=[{SHAPES!r}], flavor='tensorrt', "
        f"quantization=images).save('bundle')"
    )


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("reference", {"shapes": SHAPES}, "backend 'reference' has no option shapes; it has none"),
        ("openvino", {"shapes": SHAPES}, "backend 'openvino' has no option shapes; it has threads, device"),
        ("tensorrt", {"tune": True}, "backend 'tensorrt' has no option tune; it has shapes, flavor, targets"),
        ("triton", {"threads": 2, "shapes": SHAPES}, "backend 'triton' has no option shapes, threads; it has tune"),
    ],
)
def test_options_of_other_backends(backend, options, message, machine, small_model):
    with pytest.raises(cf.BackendError, match=f"^{message}$"):
        cf.compile(small_model, backend=backend, **options)


def test_targets_are_for_bundles(machine, small_model):
    with pytest.raises(
        cf.BackendError, match=r"an engine for sm86, sm89 is built into a bundle: conformer_fast\.build"
    ):
        compiled(small_model, targets=["sm86", "sm89"])
    assert machine.built == []


def test_shapes_that_the_model_cannot_take(machine, small_model):
    with pytest.raises(ValueError, match="images are 8x32, smaller than one 16x16 patch"):
        compiled(small_model, shapes=cf.Shapes(height=(8, 32, 32), width=(32, 32, 32)))
    assert machine.built == []


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_need_images(precision, machine, small_model):
    with pytest.raises(ValueError, match=f"precision '{precision}' takes its ranges from images"):
        compiled(small_model, precision=precision)
    assert machine.built == []


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_of_images(precision, machine, small_model):
    compiled(small_model, precision=precision, quantization=[torch.randn(4, 3, 32, 32)])
    (engine,) = machine.built
    nodes = onnx.load_from_string(engine.onnx).graph.node
    assert engine.precision == precision
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 20


def test_without_a_gpu(small_model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(cf.BackendError, match="'tensorrt' cannot run here: no CUDA device"):
        compiled(small_model)
