"""What the tests of the GPU suite's steps share: sessions with pretended measurements."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_suite_samples import CEILINGS, MACHINE, PRODUCTS
from pretended_session import Pretended

from benchmarks.gpu.results import Results


@pytest.fixture
def start(tmp_path):
    """A session on one result file, of some source."""

    def start(source="s1", seconds=1000.0, variants=("tiny-p16",), batches=(1,), ceilings=CEILINGS):
        store = Results(tmp_path / "gpu.json", MACHINE, {"commit": "abc", "source": source})
        if ceilings:
            store.entry |= {"ceilings": ceilings, "products": PRODUCTS}
        end = time.monotonic() + seconds
        processes = SimpleNamespace(end=lambda but: None)
        return Pretended(store, processes, tmp_path, tmp_path, end, variants, batches)

    return start


@pytest.fixture
def running(start):
    """A session whose commands end like this, with what pytest's plugin wrote."""

    def running(end, events=()):
        session = start()
        session.commands = []

        def run(command, seconds, environment=None):
            session.commands.append(command)
            if environment and "GPU_SUITE_OUTCOMES" in environment:
                lines = "".join(json.dumps(event) + "\n" for event in events)
                Path(environment["GPU_SUITE_OUTCOMES"]).write_text(lines)
            return end

        session.processes = SimpleNamespace(run=run, end=lambda but: None)
        return session

    return running
