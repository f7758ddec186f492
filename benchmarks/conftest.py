"""What pytest-benchmark stores about the machine: what makes a number comparable, not what it is called."""

import pytest
import torch

from conformer_fast.engines.openvino.device import native_precisions
from conformer_fast.engines.openvino.products import product_rates

from .cpu import identity

_rates: dict[str, float] = {}


@pytest.fixture(scope="session")
def rates() -> dict[str, float]:
    """Operations a second of the best product, by precision."""
    if not _rates:
        _rates.update(product_rates(native_precisions(), torch.get_num_threads()))
    return _rates


def pytest_benchmark_update_machine_info(config, machine_info):
    for private in ("node", "release"):
        machine_info.pop(private, None)
    machine_info["conformer_fast"] = {**identity(), "product_rates": _rates}
