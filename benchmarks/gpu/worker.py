"""One task in a process of its own: worker.py TASK ARGUMENTS RESULT, both JSON. What fails is a result too."""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path

TASKS = {"facts": "facts.measure", "point": "points.measure", "kernels": "kernels.measure", "build": "kernels.build"}


def main(task: str, arguments: str, result: str) -> int:
    module, function = TASKS[task].split(".")
    try:
        value = getattr(import_module(f"{__package__}.{module}"), function)(**json.loads(arguments))
    except Exception as error:  # compilers, drivers and peers raise anything
        traceback.print_exc()
        first_line = (str(error).strip().splitlines() or [""])[0]
        value = {"failed": f"{type(error).__name__}: {first_line}"[:300]}
    Path(result).write_text(json.dumps(value))
    return 1 if "failed" in value else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
