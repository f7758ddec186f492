"""What the commands' tests share: the command line driven as a user would, and pictures of digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformer_fast.cli import main


@pytest.fixture
def run(capsys):
    """run(arguments...) -> status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run_json(run):
    """The same with --json: status, result, standard error."""

    def run_json(command: str, *arguments: object) -> tuple[int, dict, str]:
        status, out, err = run(command, *arguments, "--json")
        printed = json.loads(out)
        assert printed.keys() == {"command", "result"}
        assert printed["command"] == command
        return status, printed["result"], err

    return run_json


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory) -> list[str]:
    """Forty of scikit-learn's digits as PNG files, in a folder for each class; the first ten are 0 ... 9."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    from conformer_fast.datasets.digits import digit_image

    folder, digits, paths = tmp_path_factory.mktemp("digits"), load_digits(), []
    for index, (pixels, label) in enumerate(zip(digits.images[:40], digits.target, strict=False)):
        path = folder / str(label) / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        digit_image(pixels).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture
def digit_folder(digit_files) -> Path:
    """The folder that they are in."""
    return Path(digit_files[0]).parents[1]
