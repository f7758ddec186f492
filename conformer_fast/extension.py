"""Whether csrc/ was built: its extension, conformer_fast._C, can be used here, or what users are told if not."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]  # only of an editable installation, whose sources may change after the build
NOTE = "pictures go through Pillow, detectors' regions through PyTorch and int8 through OpenVINO, which is slower"


@cache
def unusable() -> str:
    """Why the extension is not used, and the next step; empty where it is used."""
    try:
        from . import _C
    except ImportError as error:
        why = "" if find_spec("._C", __package__) is None else f" ({error})"
        return f"csrc/ was not built{why}; install a C++17 compiler and then this package again, or a wheel of it"
    csrc = CHECKOUT / "csrc"
    if csrc.is_dir() and (CHECKOUT / "setup.py").is_file() and getattr(_C, "sources", None) != digest(csrc):
        return "csrc/ has changed since it was built; install this package again: pip install -e ."
    return ""


@cache
def warn_without() -> None:
    """Says once in a process that the extension is not used."""
    warnings.warn(f"{NOTE}: {unusable()}", stacklevel=2)


def digest(csrc: Path) -> str:
    """Of all C++ sources in the folder. The build compiles it in, as `_C.sources`."""
    found = hashlib.sha256()
    for file in sorted([*csrc.glob("*.cpp"), *csrc.glob("*.h")], key=lambda file: file.name):
        content = file.read_bytes()
        found.update(f"{file.name} {len(content)} ".encode() + content)
    return found.hexdigest()
