"""What the tests of the Triton backend share: a pretended GPU for the executor, tables of tiles for tuning."""

from dataclasses import replace

import pytest
from executor_samples import inference_model
from fake_cuda import fake_cuda

from conformer_fast.engines.triton import tuning
from conformer_fast.inference import ops
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import chip_of


@pytest.fixture
def cuda(_quick_collections):
    with fake_cuda() as pretended:
        yield pretended


@pytest.fixture
def model() -> InferenceConformer:
    return inference_model()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty cache of this test's own, no tables, and operators that are kernels."""
    from tuning_samples import GPU  # which corrects the interpreter of kernels, for all that runs after it

    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    for module in (dispatch, tuning):
        monkeypatch.setattr(module, "chip_of", lambda device: replace(chip_of(device), name=GPU))
    dispatch.use_table(GPU, {})
    with ops.on_kernels():
        yield tmp_path / "tuned"
