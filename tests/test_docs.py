"""What is written for people is true of the tree: pictures, files, modules, names and commands."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import conformer_fast as cf
from benchmarks.recorded import recorded_calls
from conformer_fast.cli import main
from conformer_fast.model.config import VARIANTS
from docs.drawing import rooms
from docs.drawing.picture import FOLDER

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
]  # the changes name old names
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
FOLDERS = "benchmarks|conformer_fast|csrc|docs|engines|examples|kernels|tests"  # of the tree, at its top


def rooms_of_the_tree() -> set[str]:
    """Packages and modules right in conformer_fast/, and the folders that are mapped into it or built for it."""
    package = ROOT / "conformer_fast"
    inside = {f"{file.parent.name}/" for file in package.glob("*/__init__.py")}
    modules = {file.name for file in package.glob("*.py")} - {"__init__.py"}
    return inside | modules | {"engines/", "kernels/", "csrc/"}


def words(picture: Path) -> list[str]:
    return [text.text or "" for text in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_every_room_is_in_the_picture():
    shown = words(FOLDER / "rooms-light.svg")
    assert {word for word in shown if re.fullmatch(r"[a-z]+(/|\.py)", word)} == rooms_of_the_tree()


def test_every_room_is_in_the_table_of_contributing():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    table = [(int(floor), name) for floor, names in rows for name in re.findall(r"`(.+?)`", names)]
    floors = rooms.floors()
    expected = [(len(floors) - row, rooms.shown(room)) for row, floor in enumerate(floors) for room in floor]
    assert table == expected
    assert {name for _, name in table} == rooms_of_the_tree()


def test_the_way_of_an_image_has_the_models_sizes():
    shown = words(FOLDER / "way-of-an-image-light.svg")
    with torch.device("meta"):
        model = cf.Conformer(VARIANTS["small-p16"]).eval()
        images = torch.empty(1, 3, 224, 224)
        blocks = list(model.forward_blocks(images))
    for tensor in (images, *blocks[0], *blocks[-1], model(images).logits):
        assert f"(B, {', '.join(map(str, tensor.shape[1:]))})" in " ".join(shown)
    assert f"blocks 2 to {len(blocks)}" in shown


def files_named(document: Path) -> set[str]:
    """What a link leads to, and code that looks like a file of the tree; names with a part left open are none."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|srcset|href)=\"([^\"#]+)", text)
    code = re.findall(r"`([^`\n]+)`", text)
    parts = {part.rstrip(".,:") for line in code for part in line.split()}
    paths = {part for part in parts if re.match(rf"({FOLDERS})/|[\w.]+\.(py|cpp|h)$", part) and "<" not in part}
    return {link for pair in links for link in pair if link and not link.startswith("http")} | paths


@EACH
def test_files_exist(document):
    named = files_named(document)
    assert named
    names = {path.name for folder in FOLDERS.split("|") for path in (ROOT / folder).rglob("*")}
    missing = {name for name in named if not any((base / name).exists() for base in (document.parent, ROOT))}
    assert {name for name in missing if "/" in name or name not in names} == set()


@EACH
def test_the_text_of_a_link_is_the_files_name(document):
    for shown, target in re.findall(r"\[([\w./]+\.py)\]\((.+?)\)", document.read_text(encoding="utf-8")):
        assert target.endswith(shown), f"[{shown}]({target})"


@EACH
def test_modules_and_names_exist(document):
    text = document.read_text(encoding="utf-8")
    prose = re.sub(r"^::: .*$", "", text, flags=re.MULTILINE)  # what the reference shows is tested with the site
    for module in re.findall(r"\b(?:conformer_fast|benchmarks)(?:\.\w+)+", prose):
        assert resolves(module), module
    for name in re.findall(r"\bcf\.(\w+)", text):
        assert name in cf.__all__, name
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert all(resolves(f"{node.module}.{alias.name}") for alias in node.names), ast.unparse(node)


def resolves(dotted: str) -> bool:
    """Whether it is a module, or a name in one."""
    try:
        if importlib.util.find_spec(dotted):
            return True
    except ModuleNotFoundError:
        pass
    module, _, name = dotted.rpartition(".")
    return hasattr(importlib.import_module(module), name)


def commands(document: Path) -> list[list[str]]:
    """Each command line of conformer-fast, in a block or in a line, as words."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^conformer-fast .*$", text, re.MULTILINE) + re.findall(r"`(conformer-fast [^`]+)`", text)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@EACH
def test_commands_have_their_options(document):
    for command, *given in commands(document):
        if command.startswith("-"):
            assert command in ("--help", "--version")
            continue
        assert command in main.COMMANDS
        parser = argparse.ArgumentParser()
        main._module(command).add_arguments(parser)
        known = {*re.findall(r"(?<!\w)--?[a-z][\w-]*", parser.format_help()), "--json"}
        assert {word for word in given if word.startswith("-")} <= known, command


@EACH
def test_targets_of_make_exist(document):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)", document.read_text(encoding="utf-8"))) <= set(targets)


def test_the_picture_of_a_block_has_the_kernels_of_one():
    """Those that a network calls are there, but for what is before the blocks and behind them."""
    shown = words(FOLDER / "conformer-block-light.svg")
    called = {call.operation.split()[0] for batch in (1, 128) for call in recorded_calls(VARIANTS["small-p16"], batch)}
    assert called - {"stem", "patch_embed", "pool", "heads"} <= {
        word.rstrip(":") for line in shown for word in line.split()
    }
