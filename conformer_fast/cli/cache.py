"""conformer-fast cache: the built engines on disk."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from .arguments import show

if TYPE_CHECKING:
    from ..engines.cache import CacheEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "clear"])


def run(options: argparse.Namespace) -> int:
    from ..engines import cache

    folder = cache.engines_folder()
    if options.action == "clear":
        freed = cache.clear()
        show(options, {"folder": str(folder), "freed_bytes": freed}, f"freed {freed / 1e6:.1f} MB in {folder}")
        return 0
    entries = cache.entries()
    size = sum(entry.size for entry in entries)
    facts = [{"key": e.key, "bytes": e.size, "used": e.used, "fields": dict(e.fields)} for e in entries]
    lines = [f"{len(entries)} engines, {size / 1e6:.1f} MB, in {folder}", *map(_line, entries)]
    show(options, {"folder": str(folder), "bytes": size, "engines": facts}, "\n".join(lines))
    return 0


def _line(entry: CacheEntry) -> str:
    fields = entry.fields
    size = f"{fields['height']}x{fields['width']}" if "height" in fields else ",".join(fields.get("targets", ()))
    used = time.strftime("%F %R", time.localtime(entry.used))
    what = f"{fields.get('backend')} {fields.get('precision')} {size:<16}"
    return f"  {entry.key[:8]}  {what}{entry.size / 1e6:7.1f} MB  last used {used}"
