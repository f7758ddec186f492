"""The GPU suite: python -m benchmarks.gpu [STEP ...] --out DIR [--seconds 530] [--resume FILE]

Writes DIR/gpu.json after every measurement, DIR/gpu.txt, the same as tables, DIR/gpu.log, what all processes printed,
and prints in its last 100 lines what is known. A second run goes on from DIR/gpu.json, or from the file it resumes, and
from what was compiled. Exit status: 0, 1 if something failed, 2 if it cannot run here, 128 + N after signal N.
"""

from __future__ import annotations

import argparse
import fcntl
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import steps, tables
from .processes import ENDING, Processes
from .results import Results, read
from .session import Job, Session
from .tree import FOLDERS, commit, fingerprint, installed

NEEDED = {"torch": (2, 11), "triton": (3, 6)}
FIRST_SECONDS = 120.0  # for the machine's facts and one small kernel, on a machine that has read nothing yet


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    end = time.monotonic() + options.seconds
    reason = unusable()
    if reason:
        print(f"the GPU suite cannot run here: {reason}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(line_buffering=True)  # a run that is cut short has said what it measured
    try:
        for earlier in (options.resume, options.out / "gpu.json"):
            if earlier and (earlier == options.resume or earlier.exists()):
                read(earlier)
        options.out.mkdir(parents=True, exist_ok=True)
        log = (options.out / "gpu.log").open("a", encoding="utf-8")
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another run writes into {options.out}; give OUT another folder, or wait", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"the GPU suite cannot write into {options.out}: {error}", file=sys.stderr)
        return 2
    for number in ENDING:
        signal.signal(number, _stop)
    with log, installed() as (environment, site), Processes(environment, Path(log.name), site.parent) as processes:
        return run(options, processes, site, end)


def _stop(number: int, _: object) -> None:
    """Ends the run in order: tables are printed, processes ended. Another signal changes nothing."""
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def parser() -> argparse.ArgumentParser:
    described = "\n".join(tables.WORDS.lines((f"  {name}", step.about) for name, step in steps.STEPS.items()))
    parser = argparse.ArgumentParser(
        "benchmarks.gpu",
        description=f"{__doc__.partition(chr(10))[0]}\n\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", type=_step, metavar="STEP", help="default: all but tune")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), metavar="DIR")
    parser.add_argument("--seconds", type=_positive, default=530, help="for all of it (default 530)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="a result file to go on from")
    parser.add_argument("--variants", nargs="+", default=steps.VARIANTS, choices=steps.VARIANTS)
    parser.add_argument("--batch", nargs="+", type=_positive, default=steps.BATCHES, metavar="N")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _step(name: str) -> str:
    if name not in steps.STEPS:
        raise argparse.ArgumentTypeError(f"{name!r} is no step; there are {', '.join(steps.STEPS)}")
    return name


def unusable() -> str | None:
    """Why there is nothing to run on here, or None."""
    for package, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"{package} >= {wanted} is not installed"
        if tuple(map(int, found.split(".")[:2])) < least:
            return f"{package} is {found}, it needs {wanted}"
    import torch

    return None if torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no CUDA device"


def run(options: argparse.Namespace, processes: Processes, site: Path, end: float) -> int:
    folder = site.with_name("results")
    folder.mkdir()
    first = Job(processes, folder, "first", {}).wait(min(FIRST_SECONDS, end - time.monotonic()))
    if "machine" not in first:
        print(f"the GPU does not answer: {first['failed']}; see {processes.log}", file=sys.stderr)
        return 1
    stamp = {"commit": commit(), "source": fingerprint(*FOLDERS)}
    try:
        results = Results(options.out / "gpu.json", first["machine"], stamp, options.resume)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    results.entry["settings"] = first["settings"]
    session = Session(results, processes, folder, site, end, options.variants, options.batch)
    print(results.origin)
    try:
        _machine(session, first)
        for name in options.steps or steps.WHOLE:
            session.step(name, steps.STEPS[name].seconds, steps.STEPS[name].run)
    finally:  # after a signal too
        source = results.stamp["source"]
        print(f"\n{tables.summary(results.entry, source, session.failures, session.left)}")
        with suppress(OSError):
            (options.out / "gpu.txt").write_text(tables.everything(results.entry, source) + "\n", encoding="utf-8")
    return 1 if session.failures else 0


def _machine(session: Session, first: dict[str, Any]) -> None:
    """The first row: whether one small kernel runs."""
    row = {"outcome": "one kernel ran", **first.get("kernel", {})}
    if "failed" in first:
        row |= {"outcome": "one kernel failed", "failed": first["failed"]}
    session.put("steps", ("machine",), row)


if __name__ == "__main__":
    sys.exit(main())
