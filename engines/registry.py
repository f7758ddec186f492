"""The backends there are: what each needs, which precisions it has here, and which one "auto" takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch

from conformer_fast.errors import BackendError
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.precision import DTYPES, FORMATS, PRECISIONS
from conformer_fast.model.shapes import Shapes

CAPABILITY = (8, 0)  # the oldest GPUs with bfloat16 and asynchronous copies: A100
CAPABILITY_FP8 = (8, 9)  # the oldest that multiply it


@dataclass(frozen=True)
class Settings:
    """How a model is compiled. ENGINE_FIELDS are those that change the engine itself; `device` takes the images; `tune`
    measures each new shape's kernels before it runs; `profile` is of TensorRT's engines alone, `quantization` of 8-bit
    precisions."""

    backend: str
    precision: str
    threads: int | None = None
    device: str = "cpu"
    tune: bool = False
    profile: Shapes | None = None
    quantization: Quantization | None = None

    ENGINE_FIELDS: ClassVar = ("backend", "precision")

    def engine_fields(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.ENGINE_FIELDS}


@dataclass(frozen=True)
class Backend:
    """missing() says why the backend cannot run here, or None; precisions() the ones it has here, the fastest last, and
    in_8_bits() those that need a calibration and so are only had when asked for; device() where it would run; "auto"
    leaves out what is asked_only."""

    hardware: str
    missing: Callable[[], str | None]
    precisions: Callable[[], tuple[str, ...]]
    in_8_bits: Callable[[], tuple[str, ...]] = lambda: ()
    device: Callable[[], str] = lambda: "cpu"
    asked_only: bool = False


def _triton_missing() -> str | None:
    if not torch.cuda.is_available() or torch.version.hip:
        return "no CUDA device"
    if find_spec("triton") is None:
        return 'triton not installed: pip install "conformer-fast[triton]"'
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on"):
        return "TRITON_INTERPRET makes Triton run its kernels on the CPU; unset it"
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY:
        return "the GPU has compute capability {}.{}, the kernels need {}.{}".format(*capability, *CAPABILITY)
    return None


def _tensorrt_missing() -> str | None:
    if not torch.cuda.is_available() or torch.version.hip:
        return "no CUDA device"
    if not any(map(find_spec, ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"))):
        return 'TensorRT not installed: pip install "conformer-fast[tensorrt]"'
    if find_spec("onnx") is None:
        return 'onnx not installed: pip install "conformer-fast[tensorrt]"'
    return None


def _cuda_device() -> str:
    return f"cuda:{torch.cuda.current_device()}"


def _cuda_in_8_bits() -> tuple[str, ...]:
    return tuple(FORMATS) if torch.cuda.get_device_capability() >= CAPABILITY_FP8 else ("int8",)


def _openvino_missing() -> str | None:
    absent = [package for package in ("openvino", "onnx") if find_spec(package) is None]
    if absent:
        return f'{" and ".join(absent)} not installed: pip install "conformer-fast[cpu]"'
    return None


def _openvino_precisions() -> tuple[str, ...]:
    from .openvino.engine import native_precisions

    return native_precisions()


# In the order in which "auto" prefers them.
BACKENDS = {
    "triton": Backend("GPU", _triton_missing, lambda: tuple(DTYPES), _cuda_in_8_bits, _cuda_device),
    # It takes the shapes of one profile only, and long to build.
    "tensorrt": Backend(
        "GPU", _tensorrt_missing, lambda: tuple(DTYPES), _cuda_in_8_bits, _cuda_device, asked_only=True
    ),
    "openvino": Backend("CPU", _openvino_missing, _openvino_precisions, lambda: ("int8",)),
    "reference": Backend("any", lambda: None, lambda: ("fp32",)),
}


def choose(backend: str = "auto", precision: str = "auto", threads: int | None = None) -> tuple[Settings, str]:
    """The settings for this machine and a one-line reason for them.

    Raises ValueError for an unknown name, BackendError when the backend is not installed or the hardware lacks the
    precision.
    """
    _check_name("backend", backend, ("auto", *BACKENDS))
    _check_name("precision", precision, ("auto", *PRECISIONS))
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be a whole number, at least 1, got {threads!r}")
    passed_over: list[str] = []
    for name, candidate in BACKENDS.items():
        if backend != name and (backend != "auto" or candidate.asked_only):
            continue
        missing = candidate.missing()
        if missing is None:
            taken, why = _precision(name, candidate, precision)
            reason = f"{name} {taken}: {why}"
            return Settings(name, taken, threads, candidate.device()), "; ".join([reason, *passed_over])
        if backend == name:
            others = [other for other, known in BACKENDS.items() if known.missing() is None]
            raise BackendError(f"backend {name!r} cannot run here: {missing}; here there is {', '.join(others)}")
        passed_over.append(f"no {name} ({missing})")
    raise AssertionError("the reference backend is never missing")


def _precision(name: str, backend: Backend, precision: str) -> tuple[str, str]:
    native = backend.precisions()
    if precision == "auto":
        why = f"the fastest precision of the {backend.hardware}" if len(native) > 1 else "its precision here"
        return native[-1], why
    if precision in native:
        return precision, "as asked"
    available = (*native, *backend.in_8_bits())
    if precision not in available:
        raise BackendError(
            f"precision {precision!r} is not available on backend {name!r} here; choose from {', '.join(available)}"
        )
    return precision, "as asked"


def _check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(known)}")
