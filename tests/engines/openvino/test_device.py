"""OpenVINO's other devices: AUTO, which is everywhere, and a pretended GPU, which is the CPU under that name."""

import pytest
import torch
from bundle_samples import images

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import conformer_fast as cf
from conformer_fast.engines.openvino import device as devices
from conformer_fast.engines.openvino import engine as engine_module
from conformer_fast.engines.openvino.runtime import core, ov


def compiled(model, **options):
    return cf.compile(model, backend=cf.OpenVINO(**options), precision="fp32")


@pytest.fixture
def gpu(monkeypatch) -> list[tuple[str, dict]]:
    """A machine with two GPUs, on which engines have names and options as a GPU's. Returns what was asked of them."""
    asked = []

    class WithGPUs:
        available_devices = ("CPU", "GPU.0", "GPU.1")

        def get_property(self, device, name):
            if device.startswith("GPU"):
                known = {
                    "FULL_DEVICE_NAME": f"a pretended {device}",
                    "OPTIMIZATION_CAPABILITIES": ["FP32", "FP16", "INT8", "EXPORT_IMPORT"],
                }
                return known[name]
            return core().get_property(device, name)

        def read_model(self, *parts):
            return core().read_model(*parts)

        def compile_model(self, model, device, options):
            asked.append((device, options))
            return core().compile_model(model, "CPU", options)

        def import_model(self, engine, device, options):
            asked.append((device, options))
            return core().import_model(engine, "CPU", options)

    for module in (devices, engine_module):
        monkeypatch.setattr(module, "core", WithGPUs)
    return asked


@pytest.mark.parametrize("name", ["AUTO", "AUTO:CPU"])
def test_auto(name, small_model, tmp_path):
    """It runs on the CPU here. Its engines cannot be stored, so a bundle has none."""
    batch = images(5, 3, 32, 48)
    fast, expected = compiled(small_model, device=name), small_model.eval()(batch)
    for found in (fast(batch), fast(batch[:1]), cf.load(fast.save(tmp_path / "bundle"), device=name)(batch)):
        torch.testing.assert_close(found.logits, expected.logits[: len(found.logits)], rtol=1e-4, atol=1e-4)
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "manifest.json",
        "labels.txt",
        "model.xml",
        "model.bin",
    }
    assert fast.device == torch.device("cpu")
    assert fast.reason == "openvino fp32: as asked"


def test_a_bundle_of_one_device_runs_on_another(small_model, tmp_path, gpu):
    batch = images(3, 3, 32, 32)
    fast = compiled(small_model, device="GPU.1")
    expected = fast(batch).logits
    folder = fast.save(tmp_path / "bundle")
    asked = len(gpu)
    assert torch.equal(cf.load(folder, device="GPU.1")(batch).logits, expected)
    assert len(gpu) == asked + 1  # taken from the bundle, not built
    for other in ("CPU", "AUTO"):
        torch.testing.assert_close(cf.load(folder, device=other)(batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_gpu_gets_its_name_and_says_how_many_requests_it_takes(small_model, gpu, monkeypatch):
    fast = compiled(small_model, device="GPU")
    expected = small_model.eval()(images(7, 3, 32, 32)).logits
    torch.testing.assert_close(fast(images(7, 3, 32, 32)).logits, expected, rtol=1e-4, atol=1e-4)
    fast(images(7, 3, 32, 32)[:1])
    assert {device for device, _ in gpu} == {"GPU"}
    hints = [options["PERFORMANCE_HINT"] for _, options in gpu]
    assert hints == ["THROUGHPUT", "THROUGHPUT", "LATENCY"]  # built, loaded; for one image loaded alone
    assert all("INFERENCE_NUM_THREADS" not in options for _, options in gpu)
    monkeypatch.setattr(engine_module, "OWN_SIZES", 0)
    other = images(2, 3, 48, 33)
    torch.testing.assert_close(fast(other).logits, small_model(other).logits, rtol=1e-4, atol=1e-4)


def test_what_a_device_has(gpu):
    assert cf.OpenVINO(device="GPU.0").precisions() == (("fp32", "fp16"), ("int8",))
    assert cf.OpenVINO(device="GPU.0").fastest() == ("fp32", "nothing is measured on GPU.0")
    assert cf.OpenVINO(device="GPU.0").speeds() == {}
    found = cf.info().backends["openvino"]
    assert found.devices == {
        "CPU": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "GPU.0": "a pretended GPU.0",
        "GPU.1": "a pretended GPU.1",
    }
    assert "GPU.1 is a pretended GPU.1" in str(found)


@pytest.mark.parametrize("name", ["NPU", "GPU.2", "AUTO:CPU,NPU", "gpu", "HETERO:GPU.0,CPU", ""])
def test_a_device_that_is_not_here(name, small_model, tmp_path, gpu):
    wanted = name.removeprefix("AUTO:CPU,")
    message = f"OpenVINO finds no device {wanted!r}, only CPU, GPU.0, GPU.1"
    with pytest.raises(cf.BackendError, match=message):
        compiled(small_model, device=name)
    capitals = "; names are in capitals" if name == "gpu" else ""
    folder = compiled(small_model).save(tmp_path / "bundle")
    with pytest.raises(cf.BackendError, match=f"{message}{capitals}; leave device= out to run the bundle on the CPU"):
        cf.load(folder, device=name)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "GPU", "threads": 2}, cf.ArgumentError, "threads=2 is of the device CPU; leave it out for 'GPU'"),
        ({"device": torch.device("cpu")}, cf.ArgumentTypeError, "device is a name such as 'GPU', got device"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        cf.OpenVINO(**options)


def test_an_engine_that_openvino_does_not_build(small_model, monkeypatch, tmp_path):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))

    def refuse(*_):
        raise RuntimeError("Exception from src/plugin.cpp:74:\nthis device has no Gelu\n\n")

    monkeypatch.setattr(ov.Core, "compile_model", refuse)
    with pytest.raises(cf.EngineError, match="builds no engine for 1 of 32x48 on CPU: this device has no Gelu"):
        compiled(small_model)(images(1, 3, 32, 48))


def test_precisions_are_known_ones():
    assert devices.native_precisions()[0] == "fp32"
    assert set(devices.native_precisions()) <= set(devices.PRECISIONS)


@pytest.mark.parametrize(
    ("capabilities", "precisions"),
    [(["FP32", "INT8"], ("fp32",)), (["BF16", "FP32"], ("fp32", "bf16")), (["FP16", "FP32"], ("fp32", "fp16"))],
)
def test_16_bits_only_where_the_cpu_has_them(capabilities, precisions, monkeypatch):
    class Core:
        def get_property(self, *_):
            return capabilities

    monkeypatch.setattr(devices, "core", Core)
    assert devices.native_precisions() == precisions


def test_description_of_the_cpu_is_json_and_steady():
    described = devices.describe()
    assert described == devices.describe()
    assert described["device"]
    assert described["capabilities"] == sorted(described["capabilities"])
    assert described["openvino"] == engine_module.ov.__version__


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_limited_instructions_are_another_cpu(variable, monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    usual = devices.describe()
    monkeypatch.setenv(variable, "AVX2")
    assert devices.describe() != usual
    assert devices.native_precisions()[0] == "fp32"
    assert devices.describe().keys() == usual.keys()
