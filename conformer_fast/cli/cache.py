"""conformer-fast cache: the built engines on disk."""

from __future__ import annotations

import argparse
import time

import conformer_fast as cf

from ..errors import shown
from ..tables import Column, Table
from .arguments import show

TABLE = Table(
    Column("key"), Column("backend"), Column("precision"), Column("for"), Column("MB", ".1f"), Column("last used")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "clear"])


def run(options: argparse.Namespace) -> int:
    from ..engines.cache import engines_folder

    folder = engines_folder()
    if options.action == "clear":
        freed = cf.clear_cache()
        show(options, {"folder": str(folder), "freed_bytes": freed}, f"freed {freed / 1e6:.1f} MB in {folder}")
        return 0
    entries = cf.cached_engines()
    size = sum(entry.size for entry in entries)
    facts = [{"key": e.key, "bytes": e.size, "used": e.used, "fields": dict(e.fields)} for e in entries]
    lines = [f"{len(entries)} entries, {size / 1e6:.1f} MB, in {folder}"]
    lines += TABLE.lines(map(_row, entries)) if entries else []
    show(options, {"folder": str(folder), "bytes": size, "engines": facts}, "\n".join(lines))
    return 0


def _row(entry: cf.CachedEngine) -> tuple[object, ...]:
    fields = entry.fields
    targets = fields.get("targets", ())
    size = ",".join(map(str, targets)) if isinstance(targets, list) else ""
    if "height" in fields:
        size = f"{fields['height']}x{fields.get('width')}" if fields["height"] else "any size"
        size = size if fields.get("images", 1) == 1 else f"{fields['images']} of {size}"
    elif "holds" in fields:
        size = fields["holds"]
    used = time.strftime("%F %R", time.localtime(entry.used))
    words = (fields.get("backend"), fields.get("precision"), size)
    return entry.key[:8], *(shown(word, 40) for word in words), entry.size / 1e6, used
