"""What a server adds to the model: serving.py OUT.json [--soak SECONDS]. Run by `make bench`.

Locust's clients, in a process of their own on the same machine, ask for classes of 500x375 JPEGs as fast as they are
answered. Beside it, by processes of their own: the engine's batches alone, and a loop from file to classes. LitServe
serves the same bundle with the same decoding. Peers take turns.

--soak: then the server under 0.9 of that rate for so long, with damaged pictures and clients that hang up.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

import conformer_fast as cf
from conformer_fast.engines.openvino.device import describe
from conformer_fast.preprocessing.cpu import load_image, preprocess

from .cpu import identity
from .preprocessing import photo

VARIANT, PRECISION = "tiny-p16", "fp32"
PICTURES = 16
BATCH = 32
CLIENTS = (1, 8, 64)
SECONDS, TURNS = 30, 2
ALONE = 15  # seconds
LOAD = 0.9
READY = ("/v2/health/ready", "/health")  # ours, and LitServe's
EVERY = 5  # seconds between two looks at the memory
SERVERS = {
    "conformer_fast": f"conformer_fast.cli serve --bundle {{bundle}} --port {{port}} --max-batch {BATCH}",
    "LitServe": f"benchmarks.serving_peer {{bundle}} {{port}} {BATCH}",
}
ALONE_IN_ITS_PROCESS = """
import json, pathlib, sys
from benchmarks.serving import alone
print(json.dumps(alone(*map(pathlib.Path, sys.argv[1:]))))
"""


def main(path: Path, soak: int) -> None:
    report: dict[str, Any] = {**identity(), "openvino": describe()["openvino"]}
    report |= {
        "litserve": version("litserve"),
        "variant": VARIANT,
        "precision": PRECISION,
        "max_batch": BATCH,
        "seconds": SECONDS,
    }
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        for index in range(PICTURES):
            photo(500 + index, 375).save(pictures / f"{index}.jpg", quality=90)
        report["picture_bytes"] = sum(path.stat().st_size for path in pictures.iterdir()) / PICTURES
        torch.manual_seed(0)
        fast = cf.compile(cf.create_model(VARIANT), backend="openvino", precision=PRECISION)
        bundle = fast.save(Path(folder, "bundle"))
        report["alone"] = in_a_process(bundle, pictures)
        print(report["alone"], flush=True)
        report["start"] = {path: started(bundle, path) for path in ("/v2/health/live", "/v2/health/ready")}
        report["rows"] = list(rows(bundle, pictures))
        report["alone_after"] = in_a_process(bundle, pictures)
        if soak:
            best = max(row["per_second"] for row in report["rows"] if row["server"] == "conformer_fast")
            report["soak"] = soaked(bundle, pictures, LOAD * best, soak)
    path.write_text(json.dumps(report, indent=1) + "\n")


def rows(bundle: Path, pictures: Path) -> Iterator[dict[str, Any]]:
    """The median of each server's turns."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(TURNS):
        for server in SERVERS:
            with running(server, bundle) as (address, _):
                for clients in CLIENTS:
                    seen = load(address, pictures, clients, SECONDS)["good"]
                    if seen["failed"]:
                        raise SystemExit(f"{server} failed {seen['failed']} of {seen['requests']} requests")
                    found.setdefault((server, clients), []).append(seen)
    for (server, clients), turns in found.items():
        figures = {name: median(turn[name] for turn in turns) for name in turns[0]}
        row = {"server": server, "clients": clients, **figures}
        print(row, flush=True)
        yield row


@contextmanager
def running(server: str, bundle: Path, *paths: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address and process, once one of these paths answers, or that it is ready."""
    port = free_port()
    command = [part.format(port=port, bundle=bundle) for part in SERVERS[server].split()]
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, paths or READY, process)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves processes behind


def started(bundle: Path, path: str) -> float:
    """Seconds from the command to an answer of this address: the least of three."""
    found = []
    for _ in range(3):
        start = time.monotonic()
        with running("conformer_fast", bundle, path):
            found.append(time.monotonic() - start)
    return min(found)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(address: str, paths: Sequence[str], process: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        try:
            if any(httpx.get(f"{address}{path}").status_code == 200 for path in paths):
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        time.sleep(0.02)
    raise SystemExit("the server is not ready after a minute")


def load(address: str, pictures: Path, clients: int, seconds: int, rate: float = 0.0) -> dict[str, dict[str, Any]]:
    """What clients saw, by what they sent: how many a second, how many failed, and milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder, "stats")
        options = f"--headless --json-file {stats} --host {address} --users {clients} --spawn-rate {clients} "
        options += f"--run-time {seconds}s --only-summary --loglevel WARNING --exit-code-on-error 0"
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("serving_load.py"))]
        environment = {**os.environ, "PICTURES": str(pictures), "RATE": str(rate)}
        subprocess.run([*command, *options.split()], env=environment, check=True, stdout=subprocess.DEVNULL)
        entries = json.loads(stats.with_suffix(".json").read_text())
    return {entry["name"]: figures(entry) for entry in entries}


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    """Of Locust's record. Its times over 100 ms are rounded to two digits."""
    times = sorted((float(time), count) for time, count in entry["response_times"].items())
    elapsed = entry["last_request_timestamp"] - entry["start_time"]
    return {
        "per_second": entry["num_requests"] / elapsed,
        "requests": entry["num_requests"],
        "failed": entry["num_failures"],
        "p50_ms": quantile(times, 0.5),
        "p99_ms": quantile(times, 0.99),
    }


def quantile(times: list[tuple[float, int]], share: float) -> float:
    """times: each with how often it was seen, in order"""
    left = share * sum(count for _, count in times)
    for milliseconds, count in times:
        left -= count
        if left <= 0:
            return milliseconds
    raise ValueError("no time was seen")


def soaked(bundle: Path, pictures: Path, rate: float, seconds: int) -> dict[str, Any]:
    """The server under load for long: what clients saw, and its memory in MB, at the beginning and at the end."""
    with running("conformer_fast", bundle) as (address, process):
        load(address, pictures, CLIENTS[-1], SECONDS)  # until its memory is as large as it gets
        memory: list[float] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(EVERY):
                memory.append(resident_mb(process.pid))

        watching = threading.Thread(target=watch)
        watching.start()
        seen = load(address, pictures, CLIENTS[-1], seconds, rate)
        ended.set()
        watching.join()
    tenth = max(1, len(memory) // 10)
    first, last = median(memory[:tenth]), median(memory[-tenth:])
    megabytes = {"first": first, "last": last, "most": max(memory)}
    result = {"seconds": seconds, "rate": rate, "seen": seen, "memory_mb": megabytes}
    print(result, flush=True)
    return result


def resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def alone(bundle: Path, pictures: Path) -> dict[str, float]:
    """Pictures a second of the engine's batches, and milliseconds from file to scores and from file to tensor."""
    fast = cf.load(bundle)
    files = [path.read_bytes() for path in sorted(pictures.iterdir())]
    images = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def read(data: bytes) -> torch.Tensor:
        return preprocess(load_image(BytesIO(data)), recipe=fast.recipe)[None]

    def classify(data: bytes) -> None:
        fast.run(read(data))

    def median_seconds(run: Callable[[Any], object], given: Sequence[Any]) -> float:
        found, until = [], time.monotonic() + ALONE
        while time.monotonic() < until:
            for one in given:
                start = time.perf_counter()
                run(one)
                found.append(time.perf_counter() - start)
        return median(found)

    batch, single = median_seconds(fast.run, [images]), median_seconds(classify, files)
    decode = median_seconds(read, files)
    return {"batch_per_second": BATCH / batch, "loop_ms": 1e3 * single, "decode_ms": 1e3 * decode}


def in_a_process(*paths: Path) -> dict[str, float]:
    """What `alone` finds."""
    done = subprocess.run([sys.executable, "-c", ALONE_IN_ITS_PROCESS, *paths], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[3]) if sys.argv[2:3] == ["--soak"] else 0)
