"""Where downloads, built engines and tuned tables are kept."""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path


def cache_root() -> Path:
    """$CONFORMER_FAST_CACHE if set, else the user's cache folder for this package. It may not exist yet."""
    chosen = os.environ.get("CONFORMER_FAST_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_dir  # not needed where the folder is given

    try:
        return Path(user_cache_dir("conformer-fast", appauthor=False))
    except RuntimeError:  # neither $HOME nor an entry for the user, as in some containers
        return _temporary()


@cache
def _temporary() -> Path:
    """A folder for temporary files that nobody else can write. Said once."""
    folder = Path(tempfile.gettempdir(), f"conformer-fast-{os.getuid()}")
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    known = folder.lstat() if os.path.lexists(folder) else None
    if known is None or not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid() or known.st_mode & 0o022:
        folder = Path(tempfile.mkdtemp(prefix="conformer-fast-"))
    warnings.warn(
        f"this user has no home folder: {folder} is the cache; $CONFORMER_FAST_CACHE names another", stacklevel=3
    )
    return folder


def tuned_folder() -> Path:
    """Where `conformer-fast tune` keeps what it measured, one file for each GPU. It may not exist yet."""
    return cache_root() / "tuned"
