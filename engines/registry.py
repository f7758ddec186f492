"""The backends there are, by name, and which one runs a model here. Listing them imports none of them."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from conformer_fast.errors import ArgumentError, BackendError, one_of
from conformer_fast.model.names import PRECISIONS

if TYPE_CHECKING:
    from conformer_fast.bundles.manifest import Format
    from conformer_fast.inference.lower import Lowered
    from conformer_fast.inference.quantization import Quantization

    from .base import Backend, Runner

# In the order in which "auto" prefers them.
BACKENDS = {
    "triton": "conformer_fast.engines.triton.backend:Triton",
    "tensorrt": "conformer_fast.engines.tensorrt.backend:TensorRT",
    "native": "conformer_fast.engines.native.backend:Native",
    "openvino": "conformer_fast.engines.openvino.backend:OpenVINO",
    "reference": "conformer_fast.engines.reference:Reference",
}
TUNED = "triton"  # whose kernels `tune` measures
AHEAD = "tensorrt"  # what `build` builds engines with, for other machines too
RUNNERS = {  # what runs the network beside the backends' engines
    "kernels": "conformer_fast.engines.triton.alone:Kernels",
    "onnxruntime": "conformer_fast.engines.onnx.runtime:ONNXRuntime",
}
REFERENCE = "reference"  # PyTorch, which judges all others
# What `diff` compares. "engine" is what `compile` takes here.
IMPLEMENTATIONS = tuple(dict.fromkeys((REFERENCE, *RUNNERS, "engine", *BACKENDS)))


class Choice(NamedTuple):
    """A backend, the precision it runs in, and why these, in one line."""

    backend: Backend
    precision: str
    reason: str


def make(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """The backend called `name` with these options.

    Raises ArgumentError for an unknown name, BackendError for an option that it does not have.
    """
    one_of("backend", name, BACKENDS)
    backend: type[Any] = pkgutil.resolve_name(BACKENDS[name])
    known = [field.name for field in fields(backend)]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise BackendError(f"backend {name!r} has no option {', '.join(unknown)}; {has}")
    return backend(**(options or {}))


def runner(name: str) -> Runner:
    """What runs the network, one of RUNNERS."""
    return pkgutil.resolve_name(RUNNERS[name])()


def given(backend: str | Backend, options: Mapping[str, Any] | None, known: Iterable[str] = ()) -> Backend:
    """The backend that a user gave: by name with its options, or as an instance that carries them.

    known: the names that there are, if "auto" is one

    Raises ArgumentError for anything else, BackendError for options beside an instance.
    """
    from .base import Backend

    if not isinstance(backend, Backend):
        if isinstance(backend, type) and issubclass(backend, Backend):
            raise ArgumentError(
                f"backend {backend.__name__} is a class; give {backend.__name__}(), or its options in it"
            )
        one_of("backend", backend, known or BACKENDS)
        return make(str(backend), options)
    if options:
        raise BackendError(
            f"the options {', '.join(options)} belong to the backend's class: {type(backend).__name__}(...)"
        )
    return backend


def format_of(name: str) -> Format:
    """Of the bundles of a backend. Raises ArgumentError for a name that no backend with bundles has."""
    form = getattr(make(name), "format", None)
    if form is None:
        raise ArgumentError(f"backend {name!r} has no bundles")
    return form


def with_bundles() -> list[str]:
    """The backends whose engines can be saved."""
    return [name for name in BACKENDS if hasattr(make(name), "format")]


def choose(
    backend: str | Backend = "auto",
    precision: str = "auto",
    options: Mapping[str, Any] | None = None,
    device_type: str | None = None,
    detector: bool = False,
    without: Mapping[str, str] | None = None,
) -> Choice:
    """What runs here: the backend asked for, or for "auto" the first that can.

    options:     of the backend's class, for one that is given by name
    device_type: "cpu" or "cuda": where it is to run; None: anywhere
    detector:    whether it is to run a detector's networks, not a Conformer
    without:     backends that "auto" does not take, and why

    Raises ArgumentError for an unknown name, BackendError when the backend cannot run here or there, has no such option
    or the hardware lacks the precision.
    """
    one_of("precision", precision, ("auto", *PRECISIONS))
    if not isinstance(backend, str) or backend != "auto":
        return _chosen(given(backend, options, ("auto", *BACKENDS)), precision, device_type, detector, [])
    passed_over = [f"no {name} ({why})" for name, why in (without or {}).items()]
    for name in BACKENDS:
        candidate = make(name)
        if candidate.asked_only or name in (without or {}) or not _is_for(candidate, precision, detector):
            continue
        why = _unusable(candidate, device_type)
        if why is None:
            return _chosen(make(name, options), precision, device_type, detector, passed_over)
        passed_over.append(f"no {name} ({why})")
    raise BackendError(f"nothing runs on {device_type!r} here: {'; '.join(passed_over)}")


def choose_for(
    reference: Lowered,
    quantization: Quantization | None,
    choice: Choice,
    backend: str | Backend,
    options: Mapping[str, Any] | None,
    device_type: str | None,
) -> Choice:
    """What `choose` returned for `backend`, or, if that was "auto" and its choice does not run this model, the next.

    Raises BackendError where a backend that was asked for does not.
    """
    chosen, precision, _ = choice
    why = chosen.refuses(reference, quantization)
    if why is None:
        return choice
    instead = choose("auto", precision, None, device_type, without={chosen.name: why})
    if backend != "auto":
        raise BackendError(
            f"backend {chosen.name!r} cannot run this model in {precision}: {why}; {instead.backend.name!r} can"
        )
    return choose("auto", precision, options, device_type, without={chosen.name: why})


def _chosen(
    backend: Backend, precision: str, device_type: str | None, detector: bool, passed_over: list[str]
) -> Choice:
    why = "it runs no detectors" if detector and not backend.runs_detectors else _unusable(backend, device_type)
    if why:
        candidates = {name: make(name) for name in BACKENDS}
        others = [
            name
            for name, candidate in candidates.items()
            if _is_for(candidate, precision, detector) and _unusable(candidate, device_type) is None
        ]
        instead = f"here there is {', '.join(others)}" if others else f"nothing else runs on {device_type} here either"
        raise BackendError(f"backend {backend.name!r} cannot run here: {why}; {instead}")
    native, calibrated = backend.precisions()
    reason = "as asked"
    if precision == "auto" and native:
        precision, reason = backend.fastest()
    elif precision not in (*native, *calibrated):
        raise BackendError(
            f"precision {precision!r} is not available on backend {backend.name!r} here; choose from "
            f"{', '.join((*native, *calibrated))}"
        )
    return Choice(backend, precision, "; ".join([f"{backend.name} {precision}: {reason}", *passed_over]))


def _is_for(backend: Backend, precision: str, detector: bool) -> bool:
    """Whether a backend is considered where none is asked for."""
    return precision in (backend.taken_for or (precision,)) and (backend.runs_detectors or not detector)


def _unusable(backend: Backend, device_type: str | None) -> str | None:
    if device_type not in (None, backend.device_type):
        return f"it runs on {backend.device_type}, not on {device_type}"
    return backend.missing()
