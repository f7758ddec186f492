"""What TensorRT measured of its kernels in earlier builds, kept on disk: later builds of similar models take less time.

One file a flavor, version and GPU, with a JSON file beside it that has its sha256: TensorRT reads the bytes in native
code, so bytes that do not match are dropped. Nothing here can stop a build: what goes wrong is a warning.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from conformer_fast.storage.atomic import replace_file
from conformer_fast.storage.paths import cache_root

from .flavors import Flavor


def attach(config: Any, flavor: Flavor) -> Any:
    """Gives the builder configuration the kept timings, else none yet. Returns TensorRT's cache: `keep` it after the
    build, which it must outlive."""
    file = file_for(flavor)
    try:
        with _locked(file):
            known = _read(file)
    except OSError as error:
        warnings.warn(f"the kept timings {file} cannot be read ({error}); building without them", stacklevel=4)
        known = b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        warnings.warn(f"the kept timings {file} are refused by {flavor}; building without them", stacklevel=4)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def keep(cache: Any, config: Any, flavor: Flavor) -> None:
    """Writes what `cache` holds after a build, with what other processes have written since it was attached."""
    file = file_for(flavor)
    try:
        with _locked(file):
            others = config.create_timing_cache(_read(file))
            if others is not None:
                cache.combine(others, False)
            serialized = cache.serialize()
            if serialized is None:
                return
            content = bytes(memoryview(serialized))
            replace_file(file, content)
            replace_file(_manifest(file), json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode())
    except OSError as error:
        warnings.warn(f"the timings of this build are not kept in {file} ({error})", stacklevel=4)


def file_for(flavor: Flavor) -> Path:
    """Where the timings of this flavor on the current GPU are. It may not exist yet."""
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name())
    return cache_root() / "timing" / f"{flavor.name}-{flavor.version}-{gpu}.cache"


def _locked(file: Path) -> FileLock:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FileLock(file.with_suffix(".lock"))


def _read(file: Path) -> bytes:
    """The kept bytes; none if there are none or they are damaged."""
    if not _manifest(file).exists():
        return b""
    try:
        expected = json.loads(_manifest(file).read_bytes())["sha256"]
        content = file.read_bytes()
        intact = hashlib.sha256(content).hexdigest() == expected
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        warnings.warn(f"the kept timings {file} are damaged; building without them", stacklevel=5)
        return b""
    return content


def _manifest(file: Path) -> Path:
    return file.with_suffix(".json")
