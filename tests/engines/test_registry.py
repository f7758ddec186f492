"""Which backend and precision are taken, and what is said when one cannot be had."""

import lookalikes
import pytest
import torch

import conformer_fast as cf
from conformer_fast import BackendError, Conformer
from conformer_fast.engines.base import Precisions, Settings
from conformer_fast.engines.registry import BACKENDS, choose, make
from conformer_fast.model.names import PRECISIONS
from conformer_fast.model.precision import DTYPES, FORMATS


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine seems to have: machine(capability=..., packages=..., precisions=...). "native" is missing
    there (native/test_backend.py)."""

    def pretend(capability=None, packages=("openvino", "onnx"), precisions=("fp32", "bf16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.version, "hip", None, raising=False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        for name in ("openvino", "triton", "tensorrt"):
            module = f"conformer_fast.engines.{name}.backend.find_spec"
            monkeypatch.setattr(module, lambda name: object() if name in packages else None)
        monkeypatch.setattr(cf.Native, "missing", lambda self: "no AVX-512 VNNI")
        described = Precisions(tuple(precisions), ("int8",))
        monkeypatch.setattr(cf.OpenVINO, "precisions", lambda self: described)
        fastest = described.native[-1], "measured" if len(precisions) > 1 else "its precision here"
        monkeypatch.setattr(cf.OpenVINO, "fastest", lambda self: fastest)

    return pretend


def chosen(*arguments, **options):
    """The backend's name, the precision, where it would run, and why."""
    backend, precision, reason = choose(*arguments, **options)
    return backend.name, precision, backend.torch_device(), reason


NO_GPU = "no triton (no CUDA device)"
INSTALL = 'pip install "conformer-fast[cpu]"'
GPU = {"capability": (9, 0), "packages": ("triton", "openvino", "onnx")}


def test_cpu_with_everything(machine):
    machine()
    assert chosen() == ("openvino", "bf16", "cpu", f"openvino bf16: measured; {NO_GPU}")


def test_nothing_is_measured_where_a_precision_is_asked_for(machine, monkeypatch):
    machine()
    monkeypatch.setattr(cf.OpenVINO, "fastest", lambda self: pytest.fail("measured"))
    assert chosen(precision="bf16")[:2] == ("openvino", "bf16")
    assert chosen("openvino", "fp32")[:2] == ("openvino", "fp32")


def test_cpu_without_bf16(machine):
    machine(precisions=["fp32"])
    assert chosen() == ("openvino", "fp32", "cpu", f"openvino fp32: its precision here; {NO_GPU}")


@pytest.mark.parametrize(
    ("packages", "absent"),
    [((), "openvino and onnx"), (("openvino",), "onnx"), (("onnx",), "openvino")],
    ids=["none", "openvino-alone", "onnx-alone"],
)
def test_nothing_installed(packages, absent, machine):
    machine(packages=packages)
    passed_over = f"{NO_GPU}; no openvino ({absent} not installed: {INSTALL})"
    assert chosen() == ("reference", "fp32", "cpu", f"reference fp32: its precision here; {passed_over}")
    with pytest.raises(BackendError) as caught:
        choose("openvino")
    missing = f"{absent} not installed: {INSTALL}"
    assert str(caught.value) == f"backend 'openvino' cannot run here: {missing}; here there is reference"


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)
def test_gpu(capability, machine):
    machine(capability, GPU["packages"])
    assert chosen() == ("triton", "fp16", "cuda:1", "triton fp16: the fastest precision of the GPU")
    for precision in ("fp32", "bf16", "fp16"):
        assert chosen("triton", precision) == ("triton", precision, "cuda:1", f"triton {precision}: as asked")
    assert chosen("openvino")[2] == "cpu"


@pytest.mark.parametrize(
    ("capability", "there"), [((8, 0), ("int8",)), ((8, 6), ("int8",)), ((8, 9), ("int8", "fp8")), ((9, 0), FORMATS)]
)
def test_8_bits_of_a_gpu(machine, capability, there):
    machine(capability, packages=("triton", "tensorrt", "onnx"))
    for backend in ("triton", "tensorrt"):
        for precision in FORMATS:
            if precision in there:
                assert choose(backend, precision).precision == precision
            else:
                with pytest.raises(BackendError, match=r"'fp8' is not available .* from fp32, bf16, fp16, int8$"):
                    choose(backend, precision)


def test_8_bits_are_never_chosen_unasked(machine):
    machine(**GPU)
    assert choose().precision not in FORMATS
    machine(precisions=["fp32"])
    assert choose().precision == "fp32"
    assert chosen(precision="int8")[:2] == ("openvino", "int8")


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
    assert make("triton").missing() == missing
    backend, _, _, reason = chosen()
    if missing is None:
        assert backend == "triton"
        return
    assert backend == "openvino"
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
    assert make("tensorrt").missing() == missing
    assert chosen()[0] == "reference"  # "auto" never takes it
    if missing is None:
        assert chosen("tensorrt")[:3] == ("tensorrt", "fp16", "cuda:1")
    else:
        with pytest.raises(BackendError) as caught:
            choose("tensorrt")
        assert str(caught.value).startswith(f"backend 'tensorrt' cannot run here: {missing}; ")


def test_gpu_of_another_maker(machine, monkeypatch):
    machine(**GPU)
    monkeypatch.setattr(torch.version, "hip", "7.1", raising=False)
    assert make("triton").missing() == make("tensorrt").missing() == "no CUDA device"


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
    if backend != "auto" and make(backend).missing():
        return
    name, taken, _, reason = chosen(backend, precision)
    assert reason.startswith(f"{name} {taken}: ")
    assert "\n" not in reason
    assert backend in ("auto", name)
    assert precision in ("auto", taken)
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
    machine()
    with pytest.raises(BackendError, match=r"choose from fp32, bf16, int8$"):
        choose("openvino", "fp16")


@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "fp32"])
def test_reference_has_fp32_alone(precision):
    with pytest.raises(BackendError, match=rf"'{precision}' is not available on backend 'reference' .* from fp32$"):
        choose("reference", precision)


@pytest.mark.parametrize("name", ["cuda", "OpenVINO", "", None, 3], ids=repr)
def test_unknown_backend_lists_the_choices(name):
    with pytest.raises(
        ValueError, match=r"unknown backend .*; choose one of auto, triton, tensorrt, native, openvino, reference$"
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
        make("openvino", {"threads": threads})


@pytest.mark.parametrize("threads", [None, 1, 64])
def test_options_belong_to_a_backend(threads, machine):
    machine()
    assert choose("openvino", options={"threads": threads}).backend == cf.OpenVINO(threads=threads)
    assert choose(options={"threads": threads}).backend == cf.OpenVINO(threads)
    assert choose(cf.OpenVINO(threads)).backend.threads == threads


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("openvino", {"tune": True}, "backend 'openvino' has no option tune; it has threads, device"),
        ("openvino", {"tune": 1, "depth": 2}, "backend 'openvino' has no option depth, tune; it has threads, device"),
        ("reference", {"threads": 2}, "backend 'reference' has no option threads; it has none"),
        ("auto", {"tune": True}, "backend 'openvino' has no option tune; it has threads, device"),
        (cf.OpenVINO(), {"threads": 2}, r"the options threads belong to the backend's class: OpenVINO\(\.\.\.\)"),
    ],
    ids=str,
)
def test_an_option_that_a_backend_does_not_have(backend, options, message, machine, small_model):
    machine()
    with pytest.raises(BackendError, match=f"^{message}$"):
        choose(backend, options=options)
    with pytest.raises(BackendError, match=f"^{message}$"):
        cf.compile(small_model, backend=backend, **options)


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("triton", "cpu", "backend 'triton' cannot run here: it runs on cuda, not on cpu; here there is openvino, "),
        ("openvino", "cuda", "backend 'openvino' cannot run here: it runs on cpu, not on cuda; here there is triton"),
    ],
)
def test_a_device_that_a_backend_does_not_run_on(backend, device, message, machine):
    machine(**GPU)
    with pytest.raises(BackendError, match=message):
        choose(backend, device_type=device)
    assert choose(device_type="cpu").backend.name == "openvino"
    assert choose(device_type="cuda").backend.name == "triton"


def test_a_device_that_nothing_runs_on(machine):
    machine()
    with pytest.raises(BackendError, match=r"^nothing runs on 'cuda' here: no triton \(no CUDA device\); no openvino"):
        choose(device_type="cuda")


def test_every_precision_here_has_a_dtype(machine):
    machine(**GPU)
    assert {precision for name in BACKENDS for precision in make(name).precisions().native} <= set(DTYPES)
    assert set(DTYPES) <= set(PRECISIONS)


def test_compile_says_the_same(machine, small_model):
    machine(packages=())
    compiled = cf.compile(small_model)
    assert compiled.settings.backend == cf.Reference()
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
    cpu = pytest.importorskip("conformer_fast.engines.openvino.device", exc_type=ImportError)
    if make("openvino").missing():
        pytest.skip("onnx is not installed")
    assert make("openvino").precisions() == (cpu.native_precisions(), ("int8",))
    backend, precision, _ = choose("openvino")
    assert precision in cpu.native_precisions()
    model = lookalikes.fill(Conformer(small_config)).eval()
    assert cf.compile(model, backend="openvino").settings == Settings(backend, precision)


def test_a_backend_is_given_in_one_way(small_model, tmp_path):
    with pytest.raises(BackendError, match=r"the options threads belong to the backend's class: OpenVINO\(\.\.\.\)"):
        cf.build(small_model, tmp_path / "bundle", backend=cf.OpenVINO(), precision="fp32", threads=2)
    for backend in (3, None):
        with pytest.raises(
            ValueError, match=f"unknown backend {backend}; choose one of triton, tensorrt, native, openvino"
        ):
            cf.build(small_model, tmp_path / "bundle", backend=backend)
    with pytest.raises(ValueError, match=r"backend OpenVINO is a class; give OpenVINO\(\), or its options in it"):
        cf.compile(small_model, backend=cf.OpenVINO)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nope", "device must be such as 'cpu' or 'cuda:1', got 'nope'"),
        (0, "device must be such as 'cpu' or 'cuda:1', got 0"),
        (1.5, "device must be such as 'cpu' or 'cuda:1', got 1.5"),
        ("cuda:77", "there is no device 'cuda:77' here: PyTorch sees "),
    ],
)
def test_a_device_that_is_not_here(device, message, small_model):
    with pytest.raises(BackendError, match=f"^{message}"):
        cf.compile(small_model, device=device)


def test_a_device_says_where_it_runs(small_model):
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        assert cf.compile(small_model, device=device).device.type == "cpu"
