"""What tests of CPU engines share: an own cache, and what is built and loaded during a test."""

import gc
import weakref
from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; returns the folder of engines in it."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def builds(monkeypatch) -> list[dict]:
    """What each engine is that is built during the test."""
    made = []

    def counted(fields, build, refused):
        return original(fields, lambda: made.append(fields) or build(), refused)

    engine_module = pytest.importorskip("conformer_fast.engines.openvino.engine", exc_type=ImportError)
    original = engine_module.cached
    monkeypatch.setattr(engine_module, "cached", counted)
    return made


class Loaded:
    """The engines that were loaded for a run during the test, in order: images at once, and streams.

    sizes: of those that are still in memory, height and width as text, "1.." for any
    """

    def __init__(self) -> None:
        self.engines: list[tuple[int, int]] = []
        self._alive: weakref.WeakSet = weakref.WeakSet()

    def add(self, compiled, options) -> None:
        self.engines.append((compiled.input(0).partial_shape[0].get_length(), int(options["NUM_STREAMS"])))
        self._alive.add(compiled)

    @property
    def sizes(self) -> set[tuple[str, str]]:
        gc.collect()
        return {tuple(map(str, compiled.input(0).partial_shape))[2:] for compiled in self._alive}


@pytest.fixture
def loaded(monkeypatch) -> Loaded:
    ov = pytest.importorskip("openvino")
    noted, load = Loaded(), ov.Core.import_model

    def counted(core, content, device, options):
        compiled = load(core, content, device, options)
        noted.add(compiled, options)
        return compiled

    monkeypatch.setattr(ov.Core, "import_model", counted)
    return noted
