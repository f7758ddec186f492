"""Which backend and precision are taken, and what is said when one cannot be had."""

from dataclasses import replace

import lookalikes
import pytest
import torch

import conformer_fast as cf
from conformer_fast import BackendError, Conformer
from conformer_fast.engines import registry
from conformer_fast.engines.registry import BACKENDS, Settings, choose
from conformer_fast.model.precision import DTYPES, FORMATS, PRECISIONS


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine seems to have: machine(capability=..., packages=..., precisions=...)."""

    def pretend(capability=None, packages=("openvino", "onnx"), precisions=("fp32", "bf16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.version, "hip", None, raising=False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(registry, "find_spec", lambda name: object() if name in packages else None)
        openvino = BACKENDS["openvino"]
        described = replace(openvino, precisions=lambda: tuple(precisions))
        monkeypatch.setitem(BACKENDS, "openvino", described)

    return pretend


NO_GPU = "no triton (no CUDA device)"
INSTALL = 'pip install "conformer-fast[cpu]"'
GPU = {"capability": (9, 0), "packages": ("triton", "openvino", "onnx")}


def test_cpu_with_everything(machine):
    machine()
    settings, reason = choose()
    assert settings == Settings("openvino", "bf16", None)
    assert reason == f"openvino bf16: the fastest precision of the CPU; {NO_GPU}"


def test_cpu_without_bf16(machine):
    machine(precisions=["fp32"])
    settings, reason = choose()
    assert settings == Settings("openvino", "fp32", None)
    assert reason == f"openvino fp32: its precision here; {NO_GPU}"


@pytest.mark.parametrize(
    ("packages", "absent"),
    [((), "openvino and onnx"), (("openvino",), "onnx"), (("onnx",), "openvino")],
    ids=["none", "openvino-alone", "onnx-alone"],
)
def test_nothing_installed(packages, absent, machine):
    machine(packages=packages)
    settings, reason = choose()
    assert settings == Settings("reference", "fp32", None)
    passed_over = f"{NO_GPU}; no openvino ({absent} not installed: {INSTALL})"
    assert reason == f"reference fp32: its precision here; {passed_over}"
    with pytest.raises(BackendError) as caught:
        choose("openvino")
    missing = f"{absent} not installed: {INSTALL}"
    assert str(caught.value) == f"backend 'openvino' cannot run here: {missing}; here there is reference"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)
def test_gpu(capability, machine):
    machine(capability, GPU["packages"])
    assert choose() == (Settings("triton", "fp16", None, "cuda:1"), "triton fp16: the fastest precision of the GPU")
    for precision in ("fp32", "bf16", "fp16"):
        settings, reason = choose("triton", precision)
        assert settings == Settings("triton", precision, None, "cuda:1")
        assert reason == f"triton {precision}: as asked"
    settings, _ = choose("openvino")
    assert settings.device == "cpu"


@pytest.mark.parametrize(
    ("capability", "there"), [((8, 0), ("int8",)), ((8, 6), ("int8",)), ((8, 9), ("int8", "fp8")), ((9, 0), FORMATS)]
)
def test_8_bits_of_a_gpu(machine, capability, there):
    machine(capability, packages=("triton", "tensorrt", "onnx"))
    for backend in ("triton", "tensorrt"):
        for precision in FORMATS:
            if precision in there:
                assert choose(backend, precision)[0].precision == precision
            else:
                with pytest.raises(BackendError, match=r"'fp8' is not available .* from fp32, bf16, fp16, int8$"):
                    choose(backend, precision)


def test_8_bits_are_never_chosen_unasked(machine):
    machine(**GPU)
    assert choose()[0].precision not in FORMATS
    machine(precisions=["fp32"])
    assert choose()[0].precision == "fp32"
    assert choose(precision="int8")[0] == Settings("openvino", "int8")


@pytest.mark.parametrize(
    ("capability", "packages", "environment", "missing"),
    [
        (None, ("triton",), "", "no CUDA device"),
        (None, (), "", "no CUDA device"),
        ((9, 0), (), "", 'triton not installed: pip install "conformer-fast[triton]"'),
        ((7, 5), (), "", 'triton not installed: pip install "conformer-fast[triton]"'),
        ((7, 5), ("triton",), "", "the GPU has compute capability 7.5, the kernels need 8.0"),
        ((6, 1), ("triton",), "", "the GPU has compute capability 6.1, the kernels need 8.0"),
        ((9, 0), ("triton",), "1", "TRITON_INTERPRET makes Triton run its kernels on the CPU; unset it"),
        ((9, 0), ("triton",), "0", None),
    ],
)
def test_what_a_gpu_lacks(capability, packages, environment, missing, machine, monkeypatch):
    machine(capability, (*packages, "openvino", "onnx"))
    monkeypatch.setenv("TRITON_INTERPRET", environment)
    assert BACKENDS["triton"].missing() == missing
    settings, reason = choose()
    if missing is None:
        assert settings.backend == "triton"
        return
    assert settings.backend == "openvino"
    assert reason.endswith(f"; no triton ({missing})")
    with pytest.raises(BackendError) as caught:
        choose("triton")
    assert str(caught.value) == f"backend 'triton' cannot run here: {missing}; here there is openvino, reference"


@pytest.mark.parametrize(
    ("capability", "packages", "missing"),
    [
        (None, ("tensorrt", "onnx"), "no CUDA device"),
        ((9, 0), ("onnx",), 'TensorRT not installed: pip install "conformer-fast[tensorrt]"'),
        ((9, 0), ("tensorrt",), 'onnx not installed: pip install "conformer-fast[tensorrt]"'),
        ((9, 0), ("tensorrt", "onnx"), None),
        ((8, 6), ("tensorrt_rtx", "onnx"), None),
        ((7, 5), ("tensorrt_rtx_bindings", "onnx"), None),
    ],
)
def test_what_tensorrt_lacks(capability, packages, missing, machine):
    machine(capability, packages)
    assert BACKENDS["tensorrt"].missing() == missing
    assert choose()[0].backend == "reference"  # "auto" never takes it
    if missing is None:
        assert choose("tensorrt")[0] == Settings("tensorrt", "fp16", None, "cuda:1")
    else:
        with pytest.raises(BackendError) as caught:
            choose("tensorrt")
        assert str(caught.value).startswith(f"backend 'tensorrt' cannot run here: {missing}; ")


def test_gpu_of_another_maker(machine, monkeypatch):
    machine(**GPU)
    monkeypatch.setattr(torch.version, "hip", "7.1", raising=False)
    assert BACKENDS["triton"].missing() == BACKENDS["tensorrt"].missing() == "no CUDA device"


def test_triton_without_cuda(machine):
    machine()
    with pytest.raises(
        BackendError, match="'triton' cannot run here: no CUDA device; here there is openvino, reference"
    ):
        choose("triton")


@pytest.mark.parametrize("backend", ["auto", "openvino", "reference", "tensorrt", "triton"])
@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("capability", [None, (7, 0), (9, 0)], ids=["cpu", "old-gpu", "gpu"])
@pytest.mark.parametrize("packages", [(), ("openvino", "onnx"), GPU["packages"]], ids=["bare", "openvino", "all"])
def test_reason_is_one_line_that_names_the_choice(backend, precision, capability, packages, machine):
    machine(capability, packages)
    if backend != "auto" and BACKENDS[backend].missing():
        return
    settings, reason = choose(backend, precision)
    assert reason.startswith(f"{settings.backend} {settings.precision}: ")
    assert "\n" not in reason
    assert backend in ("auto", settings.backend)
    assert precision in ("auto", settings.precision)
    assert ("as asked" in reason) == (precision == "fp32")


@pytest.mark.parametrize(
    ("backend", "precision", "choices"),
    [
        ("openvino", "bf16", "fp32"),
        ("openvino", "fp16", "fp32"),
        ("auto", "bf16", "fp32"),
        ("openvino", "fp8", "fp32"),
    ],
)
def test_precision_that_the_hardware_lacks(backend, precision, choices, machine):
    machine(precisions=["fp32"])
    with pytest.raises(BackendError) as caught:
        choose(backend, precision)
    expected = f"precision '{precision}' is not available on backend 'openvino' here; choose from {choices}, int8"
    assert str(caught.value) == expected


def test_precisions_that_there_are_are_all_named(machine):
    machine(precisions=["fp32", "bf16"])
    with pytest.raises(BackendError, match=r"choose from fp32, bf16, int8$"):
        choose("openvino", "fp16")


@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "fp32"])
def test_reference_has_fp32_alone(precision):
    with pytest.raises(BackendError, match=rf"'{precision}' is not available on backend 'reference' .* from fp32$"):
        choose("reference", precision)


@pytest.mark.parametrize("name", ["cuda", "OpenVINO", "", None, 3], ids=repr)
def test_unknown_backend_lists_the_choices(name):
    with pytest.raises(
        ValueError, match=r"unknown backend .*; choose one of auto, triton, tensorrt, openvino, reference$"
    ) as caught:
        choose(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["float32", "FP32", "", None, torch.bfloat16], ids=repr)
def test_unknown_precision_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"unknown precision .*; choose one of auto, fp32, bf16, fp16, int8, fp8$"):
        choose("reference", name)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"], ids=repr)
def test_threads_must_be_a_positive_number(threads):
    with pytest.raises(ValueError, match=rf"threads must be a whole number, at least 1, got {threads!r}"):
        choose("reference", threads=threads)


@pytest.mark.parametrize("threads", [None, 1, 64])
def test_threads_are_passed_on_but_decide_no_engine(threads):
    settings, _ = choose("reference", threads=threads)
    assert settings.threads == threads
    assert settings.engine_fields() == {"backend": "reference", "precision": "fp32"}


def test_every_precision_here_has_a_dtype(machine):
    machine(**GPU)
    assert {precision for backend in BACKENDS.values() for precision in backend.precisions()} <= set(DTYPES)
    assert set(DTYPES) <= set(PRECISIONS)


def test_compile_says_the_same(machine, small_model):
    machine(packages=())
    compiled = cf.compile(small_model)
    assert compiled.settings.backend == "reference"
    assert INSTALL in compiled.reason
    assert INSTALL in repr(compiled)
    assert compiled(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 7)
    with pytest.raises(BackendError, match="not installed"):
        cf.compile(small_model, backend="openvino")
    with pytest.raises(ValueError, match="unknown backend"):
        cf.compile(small_model, backend="fastest")


def test_settings_are_checked_before_the_model(machine):
    machine()
    with pytest.raises(ValueError, match="unknown precision"):
        cf.compile("no-such-file.pth", precision="fp64")


def test_openvino_reports_its_own_precisions(small_config):
    engine_module = pytest.importorskip("conformer_fast.engines.openvino.engine", exc_type=ImportError)
    if BACKENDS["openvino"].missing():
        pytest.skip("onnx is not installed")
    assert BACKENDS["openvino"].precisions() == engine_module.native_precisions()
    settings, _ = choose("openvino")
    assert settings.precision == engine_module.native_precisions()[-1]
    model = lookalikes.fill(Conformer(small_config)).eval()
    assert cf.compile(model, backend="openvino").settings == settings
