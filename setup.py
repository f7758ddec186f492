"""Maps the top-level folders engines/ and kernels/ into the package and builds csrc/; the rest is in pyproject.toml.

csrc/ makes conformer_fast._C. It is optional: without pybind11 or a C++17 compiler the package installs without it, and
says so when it is used (conformer_fast/extension.py), as pip shows nothing of a build that succeeds.

A wheel is of one version of Python, as pybind11 has no stable ABI. nanobind has one, from Python 3.12 on: 3.11 would
still need a wheel of its own, and every argument of csrc/*module.cpp another type, to save two small wheels.
"""

import runpy
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build import build
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


class FreshBuild(build):
    """Takes nothing from an old build/, which may hold modules and an extension of other sources."""

    def run(self):
        shutil.rmtree(Path(self.build_lib, "conformer_fast"), ignore_errors=True)
        super().run()


class OptionalBuild(build_ext):
    """Goes on without what cannot be built, and says so. What was built in place before does not stay."""

    def run(self):
        try:
            for extension in self.extensions if self.inplace else ():
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
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
    sources = runpy.run_path("conformer_fast/extension.py")["digest"](Path("csrc"))
    gcc = ["-O3", "-g0", "-ffp-contract=off", "-pthread"]
    flags = ["/O2", "/fp:precise"] if sys.platform == "win32" else gcc
    return [
        Pybind11Extension(
            "conformer_fast._C",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            define_macros=[("SOURCES", sources)],
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
    cmdclass={"build": FreshBuild, "build_ext": OptionalBuild},
)
