"""What TensorRT measured of its kernels in earlier builds, kept on disk: later builds of similar models take less time.

One file a flavor, version and GPU, beside its sha256: TensorRT reads the bytes in native code. Nothing here can stop a
build: what goes wrong is a warning.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from conformer_fast.storage.hashed import HashedFile
from conformer_fast.storage.paths import cache_root

from .flavors import Flavor


def attach(config: Any, flavor: Flavor) -> Any:
    """Gives the builder configuration the kept timings, else none yet. Returns TensorRT's cache: `keep` it after the
    build, which it must outlive."""
    file = HashedFile(file_for(flavor))
    cache = config.create_timing_cache(_timings(file))
    if cache is None or not config.set_timing_cache(cache, False):
        warnings.warn(f"{file.path} is refused by {flavor}; building without its timings", stacklevel=4)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def keep(cache: Any, config: Any, flavor: Flavor) -> None:
    """Writes what `cache` holds after a build, with what other processes have written since it was attached."""
    file = HashedFile(file_for(flavor))
    with file.locked_if_writable():
        others = config.create_timing_cache(_timings(file))
        if others is not None:
            cache.combine(others, False)
        serialized = cache.serialize()
        if serialized is not None:
            file.write_or_warn("timings", bytes(memoryview(serialized)))


def file_for(flavor: Flavor) -> Path:
    """Where the timings of this flavor on the current GPU are. It may not exist yet."""
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name())
    return cache_root() / "timing" / f"{flavor.name}-{flavor.version}-{gpu}.cache"


def _timings(file: HashedFile) -> bytes:
    """The kept bytes; none if there are none or they are damaged."""
    return file.read_or_warn("building without its timings") or b""
