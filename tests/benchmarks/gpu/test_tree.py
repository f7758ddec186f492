"""The tree that the GPU suite runs: its folders, and how its source is told from another."""

import runpy
from pathlib import Path

from benchmarks.gpu import tree

ROOT = Path(__file__).parents[3]


def test_installed_folders_are_those_of_setup(monkeypatch):
    asked = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **options: asked.update(options))
    runpy.run_path("setup.py", run_name="__main__")
    assert {name.replace(".", "/"): folder for name, folder in asked["package_dir"].items()} == {
        target: source for source, target in tree.FOLDERS.items()
    }


def test_source_is_what_is_in_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "x.py").write_text("1")
    first = tree.fingerprint("a")
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("1")
    (tmp_path / "a" / "_C.cpython-311-x86_64-linux-gnu.so").write_text("1")
    assert tree.fingerprint("a") == first
    (tmp_path / "a" / "x.py").write_text("2")
    assert tree.fingerprint("a") != first
    monkeypatch.setenv("COMMIT", "from outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tree.commit() == "from outside"
