"""Results as a parquet file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import BinaryIO

from .rows import Row

ROWS = 10_000  # of a row group, which is in memory


def write_parquet(file: BinaryIO, rows: Iterable[Row]) -> None:
    """Columns: picture and error are texts; classes (int32), labels and probabilities (float32) are lists."""
    import pyarrow as arrow
    from pyarrow import parquet

    kinds = {
        "picture": arrow.string(),
        "classes": arrow.list_(arrow.int32()),
        "labels": arrow.list_(arrow.string()),
        "probabilities": arrow.list_(arrow.float32()),
        "error": arrow.string(),
    }
    schema = arrow.schema(list(kinds.items()))
    left = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(left, ROWS)):
            writer.write_table(arrow.Table.from_pylist([row._asdict() for row in group], schema))
