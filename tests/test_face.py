"""What `import conformer_fast as cf` gives: every public name, when it is first used, and nothing before."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import conformer_fast as cf
from conformer_fast import errors
from conformer_fast.engines.registry import BACKENDS

FUNCTIONS = [name for name in cf.__all__ if inspect.isfunction(getattr(cf, name))]
WITH_METHODS = ("FastConformer", "Quantization")
# What results may be made of that is none of ours; an Engine is a Callable.
OTHERS = {"Any", "Application", "Engine", "None", "Path", "Tensor", "dict", "int", "list", "str", "tuple"}


def run(code: str) -> str:
    """What a fresh interpreter, away from the checkout's root, prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path.home())
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", cf.__all__)
def test_every_name_resolves_and_is_described(name):
    value = getattr(cf, name)
    assert value.__doc__
    assert name in dir(cf)
    assert getattr(value, "__name__", name) == name


def test_type_checkers_see_the_same():
    """The imports for them are those of the table."""
    tree = ast.parse(Path(cf.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # so that they take it for public
            seen[alias.name] = f"{node.module}:{alias.name}"
    assert seen == cf.HOMES


def test_the_import_waits_for_nothing():
    code = """
import sys
import conformer_fast as cf
dir(cf), cf.__all__, hasattr(cf, "no_such_name")
print(sorted({"torch", "numpy", "PIL", "triton"} & sys.modules.keys()))
cf.BackendError, cf.VARIANTS, cf.__version__
print(sorted({"torch", "numpy", "PIL", "triton"} & sys.modules.keys()))
cf.compile
print("torch" in sys.modules)
"""
    assert run(code) == "[]\n[]\nTrue\n"


def test_a_name_is_looked_up_once(monkeypatch):
    monkeypatch.delitem(vars(cf), "Shapes", raising=False)
    first = cf.Shapes
    assert vars(cf)["Shapes"] is first


def test_no_room_takes_the_place_of_a_name():
    """Importing a module of the package sets an attribute of it."""
    assert not {path.stem for path in Path(cf.__file__).parent.iterdir()} & set(cf.__all__)


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'conformer_fast' has no attribute 'no_such_name'"):
        cf.no_such_name  # noqa: B018


def test_errors_are_all_there():
    ours = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert ours <= set(cf.__all__)
    for name in cf.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(cf, name), cf.ConformerFastError)


def test_backends_are_all_there():
    assert {path.rpartition(":")[2] for path in BACKENDS.values()} <= set(cf.__all__)


def test_what_functions_return_is_there():
    """By the names in their annotations."""
    methods = {
        f"{owner}.{name}": value
        for owner in WITH_METHODS
        for name, value in vars(getattr(cf, owner)).items()
        if not name.startswith("_") and inspect.isroutine(value)
    }
    functions = {name: getattr(cf, name) for name in FUNCTIONS} | methods
    assert len(functions) > 15
    returned = {}
    for name, function in functions.items():
        annotation = getattr(function, "__func__", function).__annotations__["return"]
        names = {node.id for node in ast.walk(ast.parse(str(annotation))) if isinstance(node, ast.Name)}
        returned[name] = names - OTHERS - set(cf.__all__)
    assert {name: names for name, names in returned.items() if names} == {}


def test_what_they_raise_is_there():
    """By the names in the docstrings, of methods too."""
    texts = {}
    for name in cf.__all__:
        value = getattr(cf, name)
        texts[name] = value.__doc__ or ""
        if inspect.isclass(value) and value.__module__.startswith("conformer_fast"):
            texts |= {
                f"{name}.{key}": inspect.getdoc(part) or "" for key, part in vars(value).items() if callable(part)
            }
    raised = {error: name for name, text in texts.items() for error in re.findall(r"[A-Z]\w*Error", text)}
    assert {"BundleError", "DownloadError", "ImageError"} <= raised.keys()
    known = {*cf.__all__, *vars(builtins), *vars(torch)}
    assert {error: name for error, name in raised.items() if error not in known} == {}
