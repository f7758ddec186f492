"""The kernels that TensorRT-RTX compiles when an engine first runs, kept beside the plan, hashed or signed."""

from __future__ import annotations

from pathlib import Path

from conformer_fast.bundles.manifest import RUNTIME_CACHE
from conformer_fast.storage.hashed import HashedFile


class RuntimeCacheFile:
    """Kernels that TensorRT-RTX compiled, kept in a bundle's folder as runtime.cache.

    key:    of the bundle; then nothing is read that this key has not signed. Kernels are code for the GPU.
    prefix: of the file's name, as a detector's networks have one each
    """

    def __init__(self, folder: Path, key: bytes | None = None, prefix: str = "") -> None:
        self._file = HashedFile(folder / (prefix + RUNTIME_CACHE), key, folder_mode=None)

    def read(self) -> bytes | None:
        """What was written last, or None: with a warning if it is damaged, or not signed by the key."""
        return self._file.read_or_warn("its kernels are compiled again")

    def write(self, content: bytes) -> None:
        """Replaces what there is. A folder that cannot be written is a warning, once, and costs only the keeping."""
        self._file.write_or_warn("compiled kernels", content)
