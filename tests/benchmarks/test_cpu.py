"""What CPU benchmarks say of a CPU, and peers in processes of their own."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("openvino")

from benchmarks import cpu
from benchmarks.isolated import Isolated, PeerError, _serve
from benchmarks.peers import PEERS, Peer

XEON = {"name": "Intel(R) Xeon(R) Platinum 8581C CPU @ 2.10GHz", "family": 6, "model": 207}
EPYC = {"name": "AMD EPYC", "family": 25, "model": 1}
ARM = {"name": "Neoverse-V2", "family": None, "model": None}


@pytest.mark.parametrize(
    ("known", "name"),
    [
        (XEON, "intel-xeon-platinum-8581c-cpu-family-6-model-207"),
        (EPYC, "amd-epyc-family-25-model-1"),
        (ARM, "neoverse-v2"),
    ],
)
def test_a_cpu_has_a_folder(known, name):
    assert cpu.folder_name(known) == name


def test_this_cpu():
    found = cpu.identity()
    assert found["name"]
    assert found["threads"] >= 1
    assert set(found["flags"]) <= set(cpu.FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "published"), [("tiny-p16", 5.2), ("small-p16", 10.6), ("base-p16", 23.3)])
def test_the_floor_is_that_of_the_products(variant, published):
    """Of as many multiplications as the paper counts, in billions, and as many additions."""
    rates = {"fp32": 2e9, "int8": 8e9, "bf16": 4e9}
    one = cpu.product_floor(variant, 1, "fp32", rates)
    assert 0.95 * published < one < published
    assert cpu.product_floor(variant, 8, "fp32", rates) == pytest.approx(8 * one)
    assert cpu.product_floor(variant, 1, "bf16", rates) == pytest.approx(one / 2)
    stored = cpu.product_floor(variant, 1, "int8", rates)
    assert one / 4 < cpu.product_floor(variant, 1, "int8", rates, rest="bf16") < stored < one / 2


def state(process: int) -> str:
    """As `ps` has it: "T" if it is stopped."""
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="its states are in /proc")
def test_a_peer_is_stopped_while_others_run():
    with Isolated("conformer_fast fp32", "tiny-p16", 1) as peer:
        process = peer._process.pid
        assert peer.error < 1e-5
        for _ in range(2):
            start = time.perf_counter()
            assert 0 < peer.seconds() < time.perf_counter() - start
            assert state(process) == "T"
    assert not os.path.exists(f"/proc/{process}")


class Pipe:
    """Asks for one turn. sent: the answers"""

    def __init__(self):
        self._asked = iter([True, False])
        self.recv = lambda: next(self._asked)
        self.sent = []
        self.send = self.sent.append


def test_the_first_call_of_a_turn_is_not_timed(monkeypatch):
    pauses = iter([0.0, 1.0, 0.0])  # of the call that is judged, and of a turn's two

    def run(images):
        time.sleep(next(pauses))
        return torch.zeros(len(images), 1000)

    monkeypatch.setitem(PEERS, "paused", Peer("fp32", lambda model, images: run))
    pipe = Pipe()
    _serve(pipe, "paused", "tiny-p16", 1, torch.get_num_threads())
    _, seconds = pipe.sent
    assert seconds < 0.5
    assert next(pauses, None) is None


@pytest.mark.slow
def test_a_peer_that_cannot_run_says_why():
    with pytest.raises(PeerError, match=r"^[A-Za-z]+Error: .*tiny-p17"):
        Isolated("eager fp32", "tiny-p17", 1)


@pytest.mark.slow
def test_a_program_ends_though_a_peer_is_left():
    code = """
from benchmarks.isolated import Isolated
if __name__ == "__main__":
    peer = Isolated("eager fp32", "tiny-p16", 1)
    print("ends")
"""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "left.py")
        script.write_text(code)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr
