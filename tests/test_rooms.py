"""`import conformer_fast` is cheap and safe anywhere, and imports inside the package point one way."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import conformer_fast

PACKAGE = "conformer_fast"
EXTENSION = f"{PACKAGE}._C"  # of csrc/, which imports nothing
ROOT = Path(__file__).parents[1]
FOLDERS = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.engines": ROOT / "engines", f"{PACKAGE}.kernels": ROOT / "kernels"}

# From the top down. A module imports from lower rows and from its own, never from a higher one, and never in a circle.
LAYERS = [
    {"cli"},
    {"cli_calibrate", "cli_diff", "cli_engines", "cli_evaluate", "cli_model"},
    {"diff", "evaluation", "heatmap", "runners"},
    {"builder", "bundle", "compiler", "inference_server", "tuning", "verify"},
    {"fast", "manifest"},
    {"backends", "calibration", "cuda_graph", "smoothquant", "gate", "observer", "outputs", "source", "engines.*"},
    {"fuse"},
    {"datasets", "evaluation_report", "preprocess_gpu", "labeled", "published", "shards", "tally"},
    {"ops", "histograms", "quantization", "quantization_file"}
    | {"model", "weights", "dialects", "download", "labels", "digits", "digit_pairs"},
    {"functional", "config", "files", "paths", "preprocess", "profile", "streams", "timing", "kernels.*"},
]
LEAVES = {"functional", "config", "files", "paths", "preprocess", "profile", "streams", "timing"}  # import none of it
OPTIONAL = {"triton", "tensorrt", "tensorrt_rtx", "openvino", "onnx", "onnxruntime", "sklearn", "skimage", "pybind11"}
OPTIONAL |= {"pyarrow"}
LEAN = {"torch", "numpy", "safetensors", "filelock", "platformdirs", "tqdm"}  # what the import may cost beside Python


def layer(module: str) -> int:
    name = module.partition(".")[0] + ".*" if "." in module else module
    rows = [row for row, modules in enumerate(LAYERS) if name in modules]
    assert rows, f"{module} has no row in LAYERS of {Path(__file__).name}; give it one"
    return rows[0]


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by its name inside it, except the packages' own __init__."""
    found = {}
    for package, folder in FOLDERS.items():
        prefix = package.removeprefix(PACKAGE).removeprefix(".")
        for file in sorted(folder.glob("*.py")):
            if file.stem != "__init__":
                found[f"{prefix}.{file.stem}".removeprefix(".")] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(name: str, *, when_run: bool = True) -> set[str]:
    """Absolute names that a module imports, anywhere in it; those for type checkers only are left out.

    when_run=False leaves out those inside functions, which are imported when they are called.
    """
    found = set()
    package = f"{PACKAGE}.{name}".rpartition(".")[0]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if not when_run and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(sources()[name])
    return found


def of_the_package(names: set[str]) -> set[str]:
    """The package's modules among them, by their name inside it; the package itself as ""."""
    found = set()
    for name in names:
        if name.partition(".")[0] == PACKAGE and name != EXTENSION:
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in sources():
                parts.pop()
            found.add(".".join(parts))
    return found


def test_the_walk_sees_what_is_there():
    assert {"cli", "model", "fuse", "engines.export"} <= sources().keys()
    assert {"functional", "config", "weights"} <= of_the_package(imported("model"))
    assert "weights" not in of_the_package(imported("model", when_run=False))
    assert "fuse" in of_the_package(imported("engines.export"))
    assert "engines.cache" in of_the_package(imported("engines.openvino"))
    assert "compiler" not in of_the_package(imported("verify"))  # for type checkers only
    assert "ops" in of_the_package(imported("fuse"))  # from . import ops
    assert "cuda_graph" in of_the_package(imported("compiler"))


@pytest.mark.parametrize("name", sources())
def test_imports_point_down(name):
    upward = {other for other in of_the_package(imported(name)) - {""} if layer(other) < layer(name)}
    assert not upward


def test_imports_form_no_circle():
    graph = {name: of_the_package(imported(name)) - {""} for name in sources()}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaves_import_nothing_of_the_package(name):
    assert not of_the_package(imported(name))


def test_nothing_imports_the_command_line():
    assert [name for name in sources() if "cli" in of_the_package(imported(name))] == []


def test_modules_take_only_the_version_from_the_package_itself():
    exported = {f"{PACKAGE}.{name}" for name in conformer_fast.__all__}
    for name in sources():
        assert not imported(name) & {PACKAGE, *exported}, name


def test_only_operators_tuning_comparison_and_images_reach_the_kernels():
    reaching = {name for name in sources() if any(".kernels" in other for other in imported(name))}
    assert {name for name in reaching if not name.startswith("kernels.")} <= {
        "ops",
        "preprocess_gpu",
        "runners",
        "tuning",
    }


def test_kernels_import_torch_and_triton_only():
    for name in filter(lambda name: name.startswith("kernels."), sources()):
        others = {other for other in imported(name) if not other.startswith(f"{PACKAGE}.kernels")}
        roots = {other.partition(".")[0] for other in others}
        assert roots - sys.stdlib_module_names <= {"torch", "triton"}, name


@pytest.mark.parametrize("name", sources())
def test_optional_packages_are_imported_where_they_are_used(name):
    roots = {other.partition(".")[0] for other in imported(name, when_run=False)}
    allowed = OPTIONAL if name.startswith(("engines.", "kernels.")) else set()
    assert roots & OPTIONAL <= allowed


def run(code: str) -> str:
    """What a fresh interpreter, away from the checkout's root, prints; it must print nothing as a warning."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path.home())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_lean_and_silent():
    code = """
import json, sys, torch
before = set(sys.modules)
import conformer_fast
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    roots = {module.partition(".")[0] for module in json.loads(run(code))}  # whatever else it printed is no JSON
    assert PACKAGE in roots
    roots = {root for root in roots if not root.startswith("_")}
    assert roots - sys.stdlib_module_names - {PACKAGE} <= LEAN


STATE = """
import json, logging, os, random, signal, sys, threading, warnings
import numpy, torch
from torch import backends

def state():
    return {
        "CUDA is initialized": torch.cuda.is_initialized(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()],
        "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device())],
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": [torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32],
        "cudnn": [backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.allow_tf32],
        "mkldnn": [backends.mkldnn.enabled, backends.mkldnn.deterministic],
        "sdpa": [backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled()],
        "denormals": (torch.tensor(1e-40) * 1).item(),
        "printing": repr(torch._tensor_str.PRINT_OPTS),
        "random": [torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate()],
        "environment": sorted(os.environ.items()),
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": [logging.root.level, *map(str, logging.root.handlers)],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "hooks": [str(hook) for hook in (sys.excepthook, sys.displayhook, threading.excepthook)],
        "interpreter": [sys.path, os.getcwd(), sys.getrecursionlimit()],
    }

before = state()
import conformer_fast
print(json.dumps([before, state()]))
"""


def test_import_changes_nothing_global():
    before, after = json.loads(run(STATE))
    assert before["CUDA is initialized"] is False
    for what, value in before.items():
        assert after[what] == value, what


def test_import_needs_none_of_the_optional_packages():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(OPTIONAL | {"PIL"})}))  # None: importing it raises ImportError
import conformer_fast as cf, torch
model = cf.create_model("digits").eval()
out = cf.compile(model, backend="reference")(torch.zeros(1, 3, 64, 64))
print(tuple(out.logits.shape))
"""
    assert run(code) == "(1, 10)\n"


def test_public_names():
    for name in conformer_fast.__all__:
        assert getattr(conformer_fast, name).__doc__, name
