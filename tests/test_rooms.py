"""The rooms: who may import whom, what the import of the package costs, and that only a backend knows its name."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import conformer_fast
from conformer_fast.engines.registry import BACKENDS

PACKAGE = "conformer_fast"
EXTENSION = f"{PACKAGE}._C"  # of csrc/, which imports nothing
ROOT = Path(__file__).parents[1]
FOLDERS = {"": ROOT / PACKAGE, "engines": ROOT / "engines", "kernels": ROOT / "kernels"}

# From the top down. A room imports rooms of lower floors only, also where an import stands inside a function.
FLOORS = [
    {"cli"},
    {"serving", "bulk", "mmdet"},
    {"deploy"},
    {"verification", "evaluation"},
    {"calibration"},
    {"engines", "datasets"},
    {"checkpoints", "inference", "preprocessing", "bundles"},
    {"model", "storage", "kernels", "cluster"},
    {"errors", "extension", "version", "tables", "progress"},
]
KERNELS = {"inference.ops", "preprocessing.gpu", "engines.cuda"}  # what reaches them beside engines/triton
OPTIONAL = {  # package: where it is imported
    "triton": ("engines.triton", "kernels", "preprocessing.gpu"),
    "tensorrt": ("engines.tensorrt",),
    "tensorrt_rtx": ("engines.tensorrt",),
    "openvino": ("engines.openvino",),
    "onnx": ("engines.onnx",),
    "onnxruntime": ("engines.onnx",),
    "pycocotools": ("evaluation.found",),
    "pyarrow": ("datasets.parquet_files", "bulk.parquet_results"),
    "mmdet": ("mmdet",),
    "torchvision": ("model.detector.operators",),
    "ray": ("cluster", "bulk.on_ray", "serving.on_ray"),
    "matplotlib": ("verification.heatmap",),
    "cryptography": ("bundles.signature",),
    "fastapi": ("serving.",),
    "starlette": ("serving.",),
    "uvicorn": ("serving.server",),
    "python_multipart": ("serving.checks",),
    "prometheus_client": ("serving.metrics",),
    "tritonclient": (),
    "playwright": (),
    "sklearn": ("datasets.digits",),
    "skimage": (),
    "pybind11": (),
}
DISTRIBUTIONS = {  # where a package is installed by another name than it is imported by
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",  # which brings it
    "tensorrt_rtx": "tensorrt-rtx-cu13-bindings",
}
LEAN = {"torch", "numpy", "safetensors", "filelock", "platformdirs", "tqdm"}  # what a use may cost beside Python


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    rows = [row for row, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert rows, f"{module} is in no room of FLOORS in {Path(__file__).name}; give its room a floor"
    return rows[0]


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by its name inside it; a package's own __init__ by the package's name."""
    found = {}
    for prefix, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [prefix, *file.relative_to(folder).with_suffix("").parts]
            name = ".".join(part for part in parts if part and part != "__init__")
            if name:
                found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def is_package(name: str) -> bool:
    return any(other.startswith(f"{name}.") for other in sources())


def imported(name: str, *, when_run: bool = True, for_types: bool = False) -> set[str]:
    """Absolute names that a module imports, anywhere in it; those for type checkers alone only if `for_types`.

    when_run=False leaves out those inside functions, which are imported when they are called.
    """
    found = set()
    package = f"{PACKAGE}.{name}" if is_package(name) else f"{PACKAGE}.{name}".rpartition(".")[0]

    def visit(node: ast.AST) -> None:
        if not for_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
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
    assert {"cli.main", "model.reference", "inference.lower", "engines.onnx.export", "errors"} <= sources().keys()
    assert {"model.functional", "model.config"} <= of_the_package(imported("model.reference"))
    assert "engines.onnx.export" not in of_the_package(imported("engines.onnx.graph", when_run=False))
    assert "engines.onnx.export" in of_the_package(imported("engines.onnx.graph"))
    assert "inference.base" in of_the_package(imported("engines.onnx.export"))
    assert "engines.cache" in of_the_package(imported("engines.openvino.engine"))
    assert "engines.base" not in of_the_package(imported("engines.registry", when_run=False))  # for type checkers only
    assert "inference.ops" in of_the_package(imported("inference.network"))  # from . import ops


@pytest.mark.parametrize("name", sources())
def test_imports_point_down(name):
    upward = {
        other
        for other in of_the_package(imported(name)) - {""}
        if room(other) != room(name) and floor(other) <= floor(name)
    }
    assert not upward, f"{name}, on floor {len(FLOORS) - floor(name)}, imports {', '.join(sorted(upward))}"


@pytest.mark.parametrize("within", sorted(set.union(*FLOORS)))
def test_files_of_a_room_form_no_circle(within):
    names = [name for name in sources() if room(name) == within]
    assert names, f"there is no room {within}"
    graph = {name: {other for other in of_the_package(imported(name)) if other in names} for name in names}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_modules_take_nothing_from_the_package_itself():
    """Its face is for users, of which the command line is one."""
    exported = {f"{PACKAGE}.{name}" for name in conformer_fast.__all__}
    for name in sources():
        assert name.startswith("cli") or not imported(name) & {PACKAGE, *exported}, name


def test_few_reach_the_kernels():
    reaching = {name for name in sources() if any(".kernels" in other for other in imported(name))}
    others = {name for name in reaching if not name.startswith(("kernels", "engines.triton."))}
    assert others == KERNELS


def test_kernels_import_torch_and_triton_only():
    for name in filter(lambda name: name.startswith("kernels."), sources()):
        others = {other for other in imported(name) if not other.startswith(f"{PACKAGE}.kernels")}
        roots = {other.partition(".")[0] for other in others}
        assert roots - sys.stdlib_module_names <= {"torch", "triton"}, name


@pytest.mark.parametrize("name", sources())
def test_optional_packages_are_imported_in_their_own_rooms(name):
    """And at the beginning of a module only where that is nothing but the package's user."""
    for package in {other.partition(".")[0] for other in imported(name)} & OPTIONAL.keys():
        assert name.startswith(OPTIONAL[package]), f"{name} imports {package}"
    early = {other.partition(".")[0] for other in imported(name, when_run=False)} & OPTIONAL.keys()
    assert not early or name.startswith(("engines.", "kernels.", "serving.", "mmdet")), (
        f"{name} imports {early} at its beginning"
    )


@cache
def extras() -> dict[str, set[str]]:
    """The packages of each extra, also by other extras that it holds."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def packages(extra: str) -> set[str]:
        found = set()
        for line in listed[extra]:
            own = re.match(r"conformer-fast\[(.+)\]", line)
            found |= set.union(*map(packages, own[1].split(","))) if own else {re.match(r"[\w.-]+", line)[0].lower()}
        return found

    return {extra: packages(extra) for extra in listed}


def texts(name: str) -> list[str]:
    return [
        node.value
        for node in ast.walk(sources()[name])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def advised(name: str) -> set[str]:
    """The extras that a module's messages name."""
    return {extra for text in texts(name) for extra in re.findall(r'pip install .*?"conformer-fast\[([\w-]+)\]', text)}


@pytest.mark.parametrize("name", [name for name in sources() if advised(name)])
def test_the_extra_that_a_message_names_holds_what_is_missing(name):
    """What a module, or one of its room that it imports, looks for by name or import is in the extras that it names."""
    own = {name, *(other for other in of_the_package(imported(name)) if room(other) == room(name) != "engines")}
    looked_for = {other.partition(".")[0] for each in own for other in [*imported(each), *texts(each)]}
    packages = looked_for & OPTIONAL.keys()
    packages -= {"tensorrt_rtx"} if name == "engines.tensorrt.backend" else set()  # which is not for users of it
    assert packages
    assert {DISTRIBUTIONS.get(package, package) for package in packages} <= set.union(*map(extras().get, advised(name)))


def test_messages_advise_nothing_but_extras():
    """As others would be of another version than pyproject.toml allows."""
    advice = {(name, text) for name in sources() for text in texts(name) if "pip install" in text}
    assert len(advice) > 10
    assert all(re.search(r'pip install (--upgrade )?("conformer-fast\[|-e \.)', text) for _, text in advice), advice


def test_what_the_package_imports_is_in_an_extra_for_users():
    """But for what checkpoints' owners have, and what only another package makes faster."""
    held = set.union(*(packages for extra, packages in extras().items() if extra not in ("bench", "dev")))
    used = {package for package, rooms in OPTIONAL.items() if rooms} - {"mmdet", "torchvision"}
    assert {DISTRIBUTIONS.get(package, package) for package in used} <= held
    assert {"onnxruntime", "onnx"} <= extras()["onnx"]


def named(tree: ast.Module) -> set[str]:
    """The backends that a module names as a value, outside docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    backends = BACKENDS.keys() - {"reference"}  # that is also what every engine is compared with
    return backends & {node.value for node in constants if isinstance(node.value, str)}


def test_only_backends_and_the_registry_know_their_names():
    users = defaultdict(set)
    for name, tree in sources().items():
        for backend in named(tree):
            if not name.startswith((f"engines.{backend}", "engines.registry")):
                users[name].add(backend)
    assert users == {}


@pytest.mark.parametrize("name", sources())
def test_a_backends_folder_is_imported_by_name_only_there(name):
    """Others find what is in it by the registry; the face does too, where it names what users take from there."""
    folders = {path.rpartition(":")[0].rpartition(".")[0].removeprefix(f"{PACKAGE}.") for path in BACKENDS.values()}
    found = of_the_package(imported(name, for_types=True))
    for folder in folders - {"engines"}:
        inside = {other for other in found if f"{other}.".startswith(f"{folder}.")}
        assert not inside or f"{name}.".startswith(f"{folder}."), f"{name} imports {', '.join(sorted(inside))}"


def run(code: str) -> str:
    """What a fresh interpreter, away from the checkout's root, prints; it must print nothing as a warning."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path.home())
    assert done.returncode == 0, done.stderr
    others = re.sub(r"^W\d{4} .* torch/.*\n", "", done.stderr, flags=re.MULTILINE)  # logged by PyTorch without Triton
    assert others == ""
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
sys.modules.update(dict.fromkeys({sorted({*OPTIONAL, "PIL"})}))  # None: importing it raises ImportError
import conformer_fast as cf, torch
model = cf.create_model("digits").eval()
out = cf.compile(model, backend="reference")(torch.zeros(1, 3, 64, 64))
print(tuple(out.logits.shape))
"""
    assert run(code) == "(1, 10)\n"


def test_diff_says_which_optional_packages_it_lacks():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))
import conformer_fast as cf, torch
model = cf.create_model("digits").eval()
for column in cf.diff(model, torch.randn(1, 3, 32, 32)).columns[:2]:
    print(column.implementation, column.unavailable)
"""
    reference, graph = run(code).splitlines()
    assert reference == "reference None"
    assert graph.startswith("onnxruntime the graph is written with onnx, which is not installed: pip install ")


def test_public_names():
    for name in conformer_fast.__all__:
        assert getattr(conformer_fast, name).__doc__, name
