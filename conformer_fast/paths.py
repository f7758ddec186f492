"""Where downloads and built engines are kept."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_root() -> Path:
    """$CONFORMER_FAST_CACHE if set, else the user's cache folder for this package. It may not exist yet."""
    return Path(os.environ.get("CONFORMER_FAST_CACHE") or user_cache_dir("conformer-fast", appauthor=False))
