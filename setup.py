"""Maps the top-level folders engines/ and kernels/ into the package and builds csrc/; the rest is in pyproject.toml.

csrc/ makes conformer_fast._C. It is optional: without pybind11 or a C++17 compiler the package installs without it.
"""

import sys
from glob import glob

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

try:
    from pybind11.setup_helpers import Pybind11Extension
except ImportError:
    Pybind11Extension = None


FOLDERS = {
    "conformer_fast": "conformer_fast",
    "conformer_fast.engines": "engines",
    "conformer_fast.kernels": "kernels",
}


def packages():
    return [
        f"{name}{inner}"
        for name, folder in FOLDERS.items()
        for inner in ("", *(f".{p}" for p in find_packages(folder)))
    ]


class OptionalBuild(build_ext):
    """Goes on without what cannot be built, and says so."""

    def run(self):
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:
            print(f"conformer_fast: images will go through Pillow, csrc/ was not built: {error}", file=sys.stderr)
            self.extensions = []


def extensions():
    if Pybind11Extension is None:
        print("conformer_fast: images will go through Pillow, there is no pybind11 to build csrc/", file=sys.stderr)
        return []
    # Contracting a * b + c to one rounding would change Pillow's numbers.
    # Python's own flags ask for what debuggers read, which takes half of the compiler's time.
    gcc = ["-O3", "-g0", "-ffp-contract=off", "-pthread"]
    flags = ["/O2", "/fp:precise"] if sys.platform == "win32" else gcc
    return [
        Pybind11Extension(
            "conformer_fast._C",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            extra_compile_args=flags,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
        )
    ]


setup(
    packages=packages(),
    package_dir=FOLDERS,
    include_package_data=False,
    package_data={
        "conformer_fast": ["data/*", "py.typed", "*.pyi"],
        "conformer_fast.serving": ["page.html"],
        "conformer_fast.kernels": ["tuned/*.json"],  # written by `make gpu STEPS=tune`
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuild},
)
