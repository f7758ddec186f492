"""One task in a process of its own: worker.py TASK ARGUMENTS RESULT, both JSON. What fails is a result too.

A task may be a generator: each value that it yields is the result so far, so that one which is killed leaves the last.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from conformer_fast.storage.atomic import replace_file

TASKS = {
    "first": "facts.first",
    "facts": "facts.measure",
    "check": "checks.run",
    "warm": "points.warm",
    "point": "points.measure",
    "kernels": "kernels.measure",
    "build": "kernels.build",
    "counters": "kernels.run_once",
    "sanitize": "sanitize.run",
    "candidates": "candidates.build",
    "tune": "candidates.measure",
}


def main(task: str, arguments: str, result: str) -> int:
    module, function = TASKS[task].split(".")
    value: dict[str, Any] = {}
    try:
        made = getattr(import_module(f"{__package__}.{module}"), function)(**json.loads(arguments))
        for value in made if isinstance(made, Iterator) else [made]:
            write(Path(result), value)
    except Exception as error:  # compilers, drivers and peers raise anything
        traceback.print_exc()
        first_line = (str(error).strip().splitlines() or [""])[0]
        write(Path(result), value | {"failed": f"{type(error).__name__}: {first_line}"[:300]})
        return 1
    return 0


def write(result: Path, value: dict[str, Any]) -> None:
    """The file is whole at any time."""
    replace_file(result, json.dumps(value).encode())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
