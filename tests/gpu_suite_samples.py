"""What the tests of the GPU suite share: a machine that is not there, and its ceilings."""

from types import MappingProxyType

MACHINE = {
    "gpu": "NVIDIA Test",
    "capability": "9.0",
    "driver": "1",
    "torch": "2.11",
    "triton": "3.6",
    "memory_gib": 80,
}
CEILINGS = {
    "bytes_per_second": 3e12,
    "l2_bytes": 25e6,
    "l2_bytes_per_second": 5e12,
    "flops_per_second": {"fp16": 790e12, "int8": 1500e12, "fp8": 1500e12},
    "gap": 2e-6,
    "dependent_gap": 1e-6,
}
PRODUCTS = {"8192x8192x8192": CEILINGS["flops_per_second"]}
STAMP = MappingProxyType({"commit": "abc", "source": "s1"})  # a test that changed it would change every other one
