"""What OpenVINO says of a device: "CPU", "GPU", "GPU.1" or "NPU", or "AUTO" and "AUTO:GPU,CPU", which choose one."""

from __future__ import annotations

import os
from typing import Any

from conformer_fast.errors import shown

from .runtime import core, ov

CPU, AUTO = "CPU", "AUTO"
CAPABILITY = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}  # ours -> OpenVINO's name in the list of a device
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # and of what it computes in but for 8-bit products


def devices() -> dict[str, str]:
    """Those that are here, and their full names."""
    return {name: core().get_property(name, "FULL_DEVICE_NAME") for name in core().available_devices}


def absent(device: str) -> str | None:
    """Why there is no such device here; None if there is."""
    here = core().available_devices
    chooser, _, listed = device.partition(":")
    for name in [name for name in listed.split(",") if name] if chooser == AUTO else [device]:
        if name not in here and not any(found.startswith(f"{name}.") for found in here):  # "GPU" is "GPU.0", of several
            capitals = "; names are in capitals" if name != name.upper() else ""
            return f"OpenVINO finds no device {shown(repr(name))}, only {', '.join(here)}{capitals}"
    return None


def native_precisions(device: str = CPU) -> tuple[str, ...]:
    """What it says it computes in hardware, fp32 first. How fast a CPU does, is measured: see speed.py."""
    native = _capabilities(device)
    return tuple(name for name, capability in CAPABILITY.items() if capability in native)


def exports(device: str) -> bool:
    """Whether its engines can be stored."""
    return "EXPORT_IMPORT" in _capabilities(device)


def describe(device: str = CPU) -> dict[str, Any]:
    """What decides whether a built engine may run here: device, instruction sets or the like, OpenVINO's version."""
    return {
        "device": core().get_property(_asked(device), "FULL_DEVICE_NAME"),
        "capabilities": _capabilities(device),
        "openvino": ov.__version__,
    }


def instruction_limit() -> str | None:
    """The newest instructions that OpenVINO's products may use, where the environment limits them; other engines are
    built then, and others are the fastest."""
    return next(filter(None, map(os.environ.get, ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))), None)


def _capabilities(device: str) -> list[str]:
    limit = instruction_limit() if device == CPU else None
    found = sorted(core().get_property(_asked(device), "OPTIMIZATION_CAPABILITIES"))
    return [*found, f"up to {limit}"] if limit else found


def _asked(device: str) -> str:
    """Who answers: of "AUTO:GPU,CPU" only "AUTO"."""
    return device.partition(":")[0]
