"""docs/versions.md has the versions of pyproject.toml and constraints.txt, of every package that users may install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from conformer_fast.bundles.manifest import SCHEMA

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
OWN = "conformer-fast["
OURS = ("bench", "dev", "docs")  # extras of who works on it


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}


def rows(requirements: list[str]) -> list[tuple[str, str, str]]:
    """(package, what is required, what was tested); of an extra in an extra, what that has."""
    extras = PROJECT["optional-dependencies"]
    parts = [
        part for line in requirements for part in (extras[line[len(OWN) : -1]] if line.startswith(OWN) else [line])
    ]
    found = (re.match(r"([\w-]+)(?:\[[\w,]+\])?(\S+?)(;|$)", line) for line in parts)
    return [(match[1], match[2], pins().get(match[1], "not run")) for match in found if match]


def cells(heading: str) -> list[list[str]]:
    """Of the table with this first column."""
    lines = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_what_every_install_brings():
    assert [tuple(row) for row in cells("package")] == rows(PROJECT["dependencies"])


def test_what_extras_bring():
    extras = {name: rows(lines) for name, lines in PROJECT["optional-dependencies"].items() if name not in OURS}
    shown: dict[str, list[tuple[str, ...]]] = {}
    for extra, _, *row in cells("extra"):
        shown.setdefault(extra or list(shown)[-1], []).append(tuple(row))
    assert shown == extras


def test_python_and_the_bundles():
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or newer" in PAGE
    assert f"(`schema`, now {SCHEMA})" in PAGE
