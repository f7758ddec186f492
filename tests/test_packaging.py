"""What is shipped: the source archive builds the wheel, and the wheel alone runs, away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest
from sklearn.datasets import load_digits

import conformer_fast
from conformer_fast.datasets.digits import digit_image

ROOT = Path(__file__).parents[1]
DATA = {
    "conformer_fast/_C.pyi",
    "conformer_fast/py.typed",
    "conformer_fast/data/imagenet_classes.txt",
    "conformer_fast/data/coco_classes.txt",
    "conformer_fast/data/digits.safetensors",
    "conformer_fast/data/handwritten_7.png",
    "conformer_fast/data/handwritten_digits.png",
    "conformer_fast/data/scattered_digits.safetensors",
    "conformer_fast/serving/page.html",
}
TUNED = "kernels/tuned/NVIDIA-Test.json"  # as `make gpu STEPS=tune` writes them
EXTENSION = f"conformer_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
FOLDERS = {"conformer_fast": "conformer_fast", "engines": "conformer_fast/engines", "kernels": "conformer_fast/kernels"}

UNWANTED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "benchmarks")  # of a checkout

pytestmark = pytest.mark.slow


class Built(NamedTuple):
    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Both archives of a copy of the checkout, the wheel built from the source archive."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "checkout", ignore=UNWANTED)
    tuned = folder / "checkout" / TUNED
    tuned.parent.mkdir(exist_ok=True)
    tuned.write_text('{"choices": {}}')
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "checkout", cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The folder that the wheel, and nothing else, is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-index", "--target", folder, built.wheel, cwd=folder)
    return folder


def shipped_modules() -> set[str]:
    """Every module of the checkout under the name that it has in the package."""
    return {
        f"{target}/{file.relative_to(ROOT / source)}"
        for source, target in FOLDERS.items()
        for file in (ROOT / source).rglob("*.py")
    }


def test_wheel_holds_the_package_and_nothing_else(built):
    names = set(zipfile.ZipFile(built.wheel).namelist())
    files = {name for name in names if ".dist-info/" not in name}
    tuned = {f"kernels/tuned/{file.name}" for file in (ROOT / "kernels" / "tuned").glob("*.json")} | {TUNED}
    assert files == shipped_modules() | DATA | {EXTENSION} | {f"conformer_fast/{name}" for name in tuned}
    assert {name.partition("/")[0] for name in files} == {"conformer_fast"}


def test_source_archive_holds_what_builds(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    modules = {str(file.relative_to(ROOT)) for source in FOLDERS for file in (ROOT / source).rglob("*.py")}
    sources = {f"csrc/{file.name}" for file in (ROOT / "csrc").iterdir()}
    assert modules | sources | DATA | {"pyproject.toml", "setup.py"} <= names
    assert not {name for name in names if name.endswith(".so")}


def test_metadata(built):
    with zipfile.ZipFile(built.wheel) as wheel:
        files = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(wheel.read(files["METADATA"]).decode())
        entry_points = wheel.read(files["entry_points.txt"]).decode()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert built.wheel.name.startswith(f"conformer_fast-{conformer_fast.__version__}-{python}-{python}-")
    assert metadata["Version"] == conformer_fast.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "conformer-fast = conformer_fast.cli.entry:run" in entry_points
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    packages = {line.partition(">=")[0] for line in required}
    assert packages == {"torch", "numpy", "safetensors", "pillow", "filelock", "platformdirs", "tqdm"}


def test_installed_wheel_runs(installed, tmp_path):
    code = """
import sys, torch
import conformer_fast as cf
import conformer_fast.engines.cache
from conformer_fast.model.class_names import imagenet_labels
model = cf.create_model("digits", weights="packaged")
out = cf.compile(model, backend="reference")(torch.zeros(2, 3, 64, 64))
print(tuple(out.logits.shape), bool(out.logits.isfinite().all()), len(imagenet_labels()))
print(*sorted(module.__file__ for name, module in sys.modules.items() if name.startswith("conformer_fast")))
"""
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    results, files = printed.splitlines()
    assert results == "(2, 10) True 1000"
    assert all(Path(file).is_relative_to(installed) for file in files.split())
    assert str(installed / "conformer_fast" / "__init__.py") in files.split()


IMAGE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]  # it would find _C
from PIL import Image
from conformer_fast.preprocessing.cpu import image_path, preprocess
print(image_path())
print(preprocess(Image.linear_gradient("L").rotate(30), 64).numpy().tobytes().hex())
"""


@pytest.fixture(scope="module")
def pixels(installed) -> list[str]:
    """How the installed wheel preprocesses a picture, and what it gives."""
    return run(sys.executable, "-c", IMAGE, cwd=installed, PYTHONPATH=str(installed)).splitlines()


def test_installed_wheel_has_the_extension(pixels):
    assert pixels[0].startswith("the extension, with ")


@pytest.mark.parametrize("missing", ["compiler", "pybind11"])
def test_without_what_builds_the_extension_the_package_installs_and_gives_the_same_numbers(
    built, pixels, tmp_path, missing
):
    pip = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--log", tmp_path / "log")
    environment = {"CC": "/nonexistent", "CXX": "/nonexistent"}
    if missing == "pybind11":
        (tmp_path / "pybind11.py").write_text("raise ImportError('hidden')")
        environment = {"PYTHONPATH": str(tmp_path)}
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--target", tmp_path / "bare")
    run(*pip, *options, built.sdist, cwd=tmp_path, **environment)
    reason = {"compiler": "csrc/ was not built: ", "pybind11": "there is no pybind11"}[missing]
    assert f"conformer_fast: images will go through Pillow, {reason}" in (tmp_path / "log").read_text()
    assert not list((tmp_path / "bare").rglob("*.so"))
    bare = run(sys.executable, "-c", IMAGE, cwd=tmp_path, PYTHONPATH=str(tmp_path / "bare")).splitlines()
    assert "not built" in bare[0]
    assert bare[1] == pixels[1]


def test_an_old_build_folder_gives_nothing(tmp_path):
    """Neither modules that are no more nor, where the compiler fails, the extension."""
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=UNWANTED)
    built = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    old = tmp_path / "checkout" / "build" / built / "conformer_fast"
    old.mkdir(parents=True)
    for name in (Path(EXTENSION).name, "removed.py"):
        (old / name).write_text("old")
        os.utime(old / name, (2**32, 2**32))  # newer than any source
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", tmp_path, tmp_path / "checkout", cwd=tmp_path, CC="/nonexistent", CXX="/nonexistent")
    (wheel,) = tmp_path.glob("*.whl")
    assert (old / "version.py").is_file()  # that is where it was built
    assert {EXTENSION, "conformer_fast/removed.py"}.isdisjoint(zipfile.ZipFile(wheel).namelist())


def test_a_build_in_place_that_fails_leaves_no_extension_of_before(tmp_path):
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=UNWANTED)
    (tmp_path / "checkout" / EXTENSION).write_text("old")
    build = (sys.executable, "setup.py", "build_ext", "--inplace")
    run(*build, cwd=tmp_path / "checkout", CC="/nonexistent", CXX="/nonexistent")
    assert not (tmp_path / "checkout" / EXTENSION).exists()


def test_the_checkouts_folder_alone_says_what_it_lacks(tmp_path):
    """As Python finds it that is started in the checkout after an installation that is not editable."""
    shutil.copytree(ROOT / "conformer_fast", tmp_path / "conformer_fast", ignore=UNWANTED)
    command = (sys.executable, "-S", "-c", "import conformer_fast")
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "start Python in another folder, or install the checkout by pip install -e ." in done.stderr


def test_installed_command_runs(installed, tmp_path):
    printed = run(installed / "bin" / "conformer-fast", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "predict" in printed


def test_a_prediction_from_an_empty_environment(built, tmp_path):
    """As a user would: a new environment, the wheel with its dependencies, another folder, a picture of a digit."""
    run(sys.executable, "-m", "venv", tmp_path / "empty", cwd=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    run(*pip, "-c", ROOT / "constraints.txt", f"{built.wheel}[cpu]", cwd=tmp_path)
    digit_image(load_digits().images[4]).save(tmp_path / "four.png")
    command = tmp_path / "empty" / "bin" / "conformer-fast"
    for backend in ("reference", "openvino"):
        printed = run(command, "predict", "four.png", "--model", "digits", "--backend", backend, "--json", cwd=tmp_path)
        assert json.loads(printed)["result"]["pictures"][0]["top"][0]["label"] == "4"
    assert str(tmp_path) in run(python, "-c", "import conformer_fast; print(conformer_fast.__file__)", cwd=tmp_path)


def test_editable_installation_follows_the_checkout(tmp_path):
    """This suite's own environment is one: the mapped folder engines/ is imported from the checkout."""
    code = "import conformer_fast.engines.onnx.export as module; print(module.__file__)"
    assert Path(run(sys.executable, "-c", code, cwd=tmp_path).strip()) == ROOT / "engines" / "onnx" / "export.py"
