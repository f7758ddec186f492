"""What every test shares: its own cache folder, random values that repeat, and the smallest model with every part."""

import os
import threading
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch: spinning threads take the time of busy machines

import lookalikes
import pytest
import torch
from quick import few_cases, is_left_out
from torch import nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: they run on the CPU, in Triton's interpreter

from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.reference import Conformer


def pytest_addoption(parser):
    parser.addoption("--cases", type=int, help="so many of each test, at most, and none that is marked slow")
    parser.addoption("--quick", action="store_true", help="without the files that tests/quick.py leaves out")


def pytest_ignore_collect(collection_path, config):
    return True if config.getoption("quick") and is_left_out(collection_path) else None


def pytest_collection_modifyitems(config, items):
    """Files with slow tests first, so that several processes end at about the same time."""
    if config.getoption("cases"):
        items[:] = few_cases(items, config.getoption("cases"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter):
    """Prints what tests measured: `record_property("table", (title, case, name, figure))`."""
    tables: dict[str, list[str]] = {}
    for report in terminalreporter.getreports("passed"):
        for kind, row in report.user_properties:
            if kind == "table" and report.when == "call":
                title, case, name, figure = row
                tables.setdefault(title, []).append(f"{case:<32}{name:<16}{figure:>10.3g}")
    for title, rows in tables.items():
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(rows))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Downloads and built engines stay out of the user's cache, in subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFORMER_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_random_values():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_config() -> ConformerConfig:
    """Three blocks, one a stage, with two heads of 24 channels, which no kernel can take for a power of two."""
    return ConformerConfig(channel_ratio=1, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2, num_classes=7)


@pytest.fixture
def small_model(small_config) -> Conformer:
    """A fresh float32 model of `small_config` with the recipe's weights, in eval mode."""
    return lookalikes.fill(Conformer(small_config)).eval()


@pytest.fixture
def modules_beside() -> Iterator[list[Exception]]:
    """Modules that have nothing to do with us, run all the time by another thread: what they raised so far."""
    other, ended, errors = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), threading.Event(), []

    def run() -> None:
        while not ended.wait(0.001):
            try:
                other(torch.zeros(1, 4))
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    ended.set()
    thread.join()
