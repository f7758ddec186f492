"""Where downloads, built engines and tuned tables are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$CONFORMER_FAST_CACHE if set, else the user's cache folder for this package. It may not exist yet."""
    chosen = os.environ.get("CONFORMER_FAST_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_dir  # not needed where the folder is given

    return Path(user_cache_dir("conformer-fast", appauthor=False))


def tuned_folder() -> Path:
    """Where `conformer-fast tune` keeps what it measured, one file for each GPU. It may not exist yet."""
    return cache_root() / "tuned"
