"""The checkout, installed without a network, without building and without touching the machine's own packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"conformer_fast": "conformer_fast", "engines": "conformer_fast/engines", "kernels": "conformer_fast/kernels"}
CACHES = ROOT / "build" / "gpu-suite"  # of compilers: a second run finds what the first compiled
_UNWANTED = shutil.ignore_patterns("__pycache__")


@contextmanager
def installed() -> Iterator[tuple[dict[str, str], Path]]:
    """The environment of processes that import the checkout as it would be installed (see setup.py), from a temporary
    folder, and `benchmarks` from the checkout; and where the package is. Downloads and engines are kept in that folder
    too, compiled kernels in CACHES."""
    with tempfile.TemporaryDirectory(prefix="conformer-fast-", ignore_cleanup_errors=True) as folder:
        site = Path(folder, "site")
        copy_to(site)
        environment = os.environ | {
            "CONFORMER_FAST_CACHE": str(Path(folder, "cache")),
            "TRITON_CACHE_DIR": str(CACHES / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(CACHES / "inductor"),
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            "PYTHONSAFEPATH": "1",  # the current folder holds a conformer_fast/ without engines and kernels
            "PYTHONUNBUFFERED": "1",
        }
        environment.pop("TRITON_INTERPRET", None)
        yield environment, site


def copy_to(site: Path) -> None:
    """The package's folders as they are now."""
    for source, target in FOLDERS.items():
        shutil.copytree(ROOT / source, site / target, ignore=_UNWANTED, dirs_exist_ok=True)


def fingerprint(*folders: str) -> str:
    """Of all files in these folders of the checkout, by name and content, but for what is built here."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".so", ".pyd"):
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    """The commit checked out, with "+" if the package differs from it; $COMMIT where there is no git."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + "+" * bool(_git("status", "--porcelain", "--", *FOLDERS))
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
