"""Maps the top-level folders engines/ and kernels/ into the package; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    packages=["conformer_fast", "conformer_fast.engines", "conformer_fast.kernels"],
    package_dir={
        "conformer_fast": "conformer_fast",
        "conformer_fast.engines": "engines",
        "conformer_fast.kernels": "kernels",
    },
    include_package_data=False,
    package_data={"conformer_fast": ["data/*", "py.typed"]},
)
