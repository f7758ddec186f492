"""Maps the top-level folder engines/ into the package; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["conformer_fast", "conformer_fast.engines"],
    package_dir={
        "conformer_fast": "conformer_fast",
        "conformer_fast.engines": "engines",
    },
    include_package_data=False,
    package_data={"conformer_fast": ["data/*", "py.typed"]},
)
