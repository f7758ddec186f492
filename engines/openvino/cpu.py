"""What OpenVINO says of this CPU."""

from __future__ import annotations

from typing import Any

from .runtime import core, ov

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # ours -> OpenVINO's name of what it computes in but for 8-bit products


def native_precisions() -> tuple[str, ...]:
    """What this CPU says it computes in hardware, fp32 first. How fast it does, is measured: see speed.py."""
    native = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in native else ("fp32",)


def describe_cpu() -> dict[str, Any]:
    """What decides whether a built engine may run here: CPU, instruction sets and OpenVINO's version."""
    return {
        "cpu": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "openvino": ov.__version__,
    }
