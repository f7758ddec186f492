"""The GPU suite: python -m benchmarks.gpu [test] [ours] [quantised] [peers] [--variants V ...] [--batch B ...]

With --out DIR it writes DIR/gpu.json, merged with what is there, DIR/gpu.txt, the same as tables, and DIR/gpu.log, what
all processes printed. Exit status: 0, 1 if a test or one of our points failed, 2 if there is no GPU to run on.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import stages, tables
from .results import Results
from .tree import FOLDERS, commit, fingerprint, installed

STAGES = ("test", "ours", "quantised", "peers")
NEEDED = {"torch": (2, 11), "triton": (3, 6)}
SHOWN = 6  # kernels of each variant in what is printed last


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    reason = unusable()
    if reason:
        print(f"the GPU suite cannot run here: {reason}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(line_buffering=True)  # a run that is cut short has said what it measured
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, and the folder removed
    options.out.mkdir(parents=True, exist_ok=True)
    with installed() as environment:
        return run(options, environment)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("stages", nargs="*", default="all", choices=(*STAGES, "all"))
    parser.add_argument("--variants", nargs="+", default=stages.VARIANTS, choices=stages.VARIANTS)
    parser.add_argument("--batch", nargs="+", type=int, default=stages.BATCHES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), metavar="DIR")
    parser.add_argument("--minutes", type=float, default=8, help="for each stage")
    parser.add_argument("--point-seconds", type=float, default=300, help="after which one point has failed")
    parser.add_argument("--again", action="store_true", help="measure everything again, keep nothing")
    return parser


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


def run(options: argparse.Namespace, environment: dict[str, str]) -> int:
    log = options.out / "gpu.log"
    log.write_text("")
    facts = stages.work("facts", {}, environment, options.point_seconds, log)
    if facts is None or "failed" in facts:
        print(f"the GPU's ceilings could not be measured: {facts}; see {log}", file=sys.stderr)
        return 1
    stamp = {"commit": commit(), "source": fingerprint(*FOLDERS)}
    try:
        results = Results(options.out / "gpu.json", facts["machine"], stamp)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    results.entry |= {"ceilings": facts["ceilings"], "products": facts["products"]}
    failures = []
    for stage in STAGES:
        if stage in options.stages or "all" in options.stages:
            limits = 60 * options.minutes, options.point_seconds
            session = stages.Session(results, environment, log, *limits, options.again)
            print(f"{stage}: at most {options.minutes:g} minutes")
            if stage == "test":
                stages.tests(session)
            else:
                getattr(stages, stage)(session, options.variants, options.batch)
            if session.left:
                print(f"{stage}: no time left for {', '.join(session.left)}; run it again")
            failures += session.failures
            results.path.with_suffix(".txt").write_text(tables.everything(results.entry) + "\n", encoding="utf-8")
    print(f"\n{tables.everything(results.entry, SHOWN)}")
    print("".join(f"\nFAILED {failure}" for failure in failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
