"""conformer-fast info: what this installation can do here."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import Any

import conformer_fast as cf

from ..model.config import PACKAGED, VARIANTS
from .arguments import show

PACKAGES = (
    *("torch", "numpy", "pillow", "openvino", "onnx", "onnxruntime"),
    *("triton", "tensorrt", "tensorrt-rtx-cu13-bindings", "pyarrow", "matplotlib"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> int:
    import torch

    from ..engines.registry import BACKENDS, choose
    from ..storage.paths import cache_root

    auto = choose()
    facts = {
        "conformer_fast": cf.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": {name: _backend(name) for name in BACKENDS},
        "auto": {"backend": auto.backend.name, "precision": auto.precision, "device": auto.backend.device()},
        "images": _images(),
        "cache": str(cache_root()),
        "models": [*VARIANTS, *PACKAGED],
    }
    show(options, facts, _text(facts, auto.reason))
    return 0


def _backend(name: str) -> dict[str, Any]:
    from ..engines.registry import make

    backend = make(name)
    missing = backend.missing()
    precisions = [] if missing else [precision for kind in backend.precisions() for precision in kind]
    return {"available": missing is None, "reason": missing, "precisions": precisions}


def _images() -> dict[str, Any]:
    """Whether pictures go through the extension, and by which instructions of the processor."""
    try:
        from .. import _C
    except ImportError:
        return {"extension": False, "instructions": None}
    return {"extension": True, "instructions": _C.instruction_sets()[0]}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(facts: dict[str, Any], auto: str) -> str:
    from ..preprocessing.cpu import image_path

    packages = {name: version or "not installed" for name, version in facts["packages"].items()}
    backends = {
        name: backend["reason"] or "available: " + ", ".join(backend["precisions"])
        for name, backend in facts["backends"].items()
    }
    machine = f"{facts['system']} {facts['machine']}, {facts['threads']} threads"
    values = {
        **{name: facts[name] for name in ("conformer_fast", "python")},
        "machine": machine,
        "packages": packages,
        "backends": backends,
        "auto": auto,
        "images": image_path(),
        "cache": facts["cache"],
        "models": ", ".join(facts["models"]),
    }
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name:<26} {what}" for name, what in value.items())]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)
