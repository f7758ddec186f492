"""What the tests of our own code for CPUs share."""

import sys
from types import SimpleNamespace

import pytest

import conformer_fast
from conformer_fast.engines.native import backend


@pytest.fixture
def cpu(monkeypatch):
    """Sets what csrc/ seems to find, cpu("amx", "avx512", "portable"), or why it is not used: cpu(unusable="...")."""

    def pretend(*instructions: str, unusable: str = "") -> None:
        extension = SimpleNamespace(int8_instruction_sets=lambda: list(instructions))
        monkeypatch.setattr(conformer_fast, "_C", extension, raising=False)
        monkeypatch.setitem(sys.modules, "conformer_fast._C", extension)
        monkeypatch.setattr(backend, "unusable", lambda: unusable)

    return pretend
