"""Files of results: JSON lines, CSV or parquet, as the file's ending says."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from ..errors import ArgumentError, BackendError, a_path
from ..storage.outputs import check_output
from .rows import Row


def check_results(out: str | os.PathLike[str]) -> Path:
    """The file that is written, which is where links end. For before any work.

    Raises what `check_output` raises; ArgumentError for another ending than that of a form, and for a file that is
    there already; BackendError where the packages of a form are missing.
    """
    path = check_output(out)
    if os.path.lexists(path):
        raise ArgumentError(f"{out} is there already; give another name, or delete it first")
    ending = ending_of(out)
    if ending not in WRITERS:
        raise ArgumentError(f"{out} must end in {', '.join(list(WRITERS)[:-1])} or {list(WRITERS)[-1]}")
    if ending == ".parquet" and not find_spec("pyarrow"):
        raise BackendError('parquet files need pyarrow: pip install "conformer-fast[datasets]"; or write .jsonl')
    return path


def ending_of(out: str | os.PathLike[str]) -> str:
    return a_path("the output", out).suffix.lower()


def _write_jsonl(file: BinaryIO, rows: Iterable[Row], topk: int) -> None:
    for row in rows:
        file.write(json.dumps(row._asdict()).encode() + b"\n")


def _write_csv(file: BinaryIO, rows: Iterable[Row], topk: int) -> None:
    """A column for each class's number, name and probability, best first."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{what}_{place}" for place in range(1, topk + 1) for what in ("class", "label", "probability")]
    writer.writerow(["picture", *columns, "error"])
    for row in rows:
        guesses = zip(row.classes, row.labels, row.probabilities, strict=True)
        cells = [cell for guess in guesses for cell in guess]
        writer.writerow([row.picture, *(cells or [""] * len(columns)), row.error or ""])
    text.detach()


def _write_parquet(file: BinaryIO, rows: Iterable[Row], topk: int) -> None:
    from .parquet_results import write_parquet

    write_parquet(file, rows)


WRITERS: dict[str, Callable[[BinaryIO, Iterable[Row], int], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""By the file's ending: writes all rows, each with `topk` classes or none."""
