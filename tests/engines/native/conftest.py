"""What the tests of our own code for CPUs share."""

import pytest

import conformer_fast as cf
from conformer_fast import _C
from conformer_fast.engines.native import backend


@pytest.fixture
def small_config() -> cf.ConformerConfig:
    """Three blocks, one a stage, with two heads of 48 channels."""
    return cf.ConformerConfig(channel_ratio=1, embed_dim=96, num_heads=2, depth=3, mlp_ratio=2, num_classes=7)


@pytest.fixture
def cpu(monkeypatch):
    """Sets what csrc/ seems to find, cpu("amx", "avx512", "portable"), or why it is not used: cpu(unusable="...")."""

    def pretend(*instructions: str, unusable: str = "") -> None:
        monkeypatch.setattr(_C, "int8_instruction_sets", lambda: list(instructions))
        monkeypatch.setattr(backend, "unusable", lambda: unusable)

    return pretend
