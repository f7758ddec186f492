"""What the tests of build() share: an empty cache, and each engine that is built."""

import pytest

from conformer_fast.engines.tensorrt import plan as plan_module


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch):
    """The arguments of each engine that would be built anew; a few bytes take its place."""
    calls = []

    def stand_in(*args):
        calls.append(args)
        return f"engine {len(calls)}".encode()

    monkeypatch.setattr(plan_module, "engine_from_onnx", stand_in)
    return calls


@pytest.fixture
def built(monkeypatch):
    """The arguments of each engine that is built anew."""
    calls, original = [], plan_module.engine_from_onnx

    def spy(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(plan_module, "engine_from_onnx", spy)
    return calls
