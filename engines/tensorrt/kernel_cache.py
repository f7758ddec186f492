"""The kernels that TensorRT-RTX compiles when an engine first runs, kept beside the plan, hashed or signed."""

from __future__ import annotations

import hashlib
import hmac
import json
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

from filelock import FileLock

from conformer_fast.storage.atomic import replace_file


class RuntimeCacheFile:
    """Kernels that TensorRT-RTX compiled, kept in a folder: runtime.cache, and its sha256 in runtime.cache.json.

    key: signs them (HMAC-SHA256); then nothing is read that this key has not signed. Kernels are code for the GPU, and
         a sha256 alone finds damage, not malice.
    """

    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self._content, self._sidecar = folder / "runtime.cache", folder / "runtime.cache.json"
        self._key = key
        self._lock = FileLock(folder / "runtime.cache.lock")
        self._writable = True

    def read(self) -> bytes | None:
        """What was written last, or None: with a warning if it is damaged, or not signed by the key."""
        if not self._sidecar.exists():
            return None
        try:
            with ExitStack() as held:
                with suppress(OSError):  # a folder that cannot be written has no writers to wait for
                    held.enter_context(self._lock)
                sidecar = json.loads(self._sidecar.read_bytes())
                content = self._content.read_bytes()
            intact = hmac.compare_digest(digest_of(content).hex(), sidecar["sha256"])
            signed = self._key is None or hmac.compare_digest(str(self._signature(content)), str(sidecar["hmac"]))
        except (OSError, ValueError, KeyError, TypeError):
            intact = signed = False
        if intact and signed:
            return content
        flaw = "not signed by the key" if intact else "damaged"
        warnings.warn(f"{self._content} is {flaw}; its kernels are compiled again", stacklevel=2)
        return None

    def write(self, content: bytes) -> None:
        """Replaces what there is. A folder that cannot be written is a warning, once, and costs only the keeping."""
        if not self._writable:
            return
        sidecar = {"bytes": len(content), "sha256": digest_of(content).hex(), "hmac": self._signature(content)}
        try:
            self._content.parent.stat()  # the lock would make the folder again
            with self._lock:
                replace_file(self._content, content)
                replace_file(self._sidecar, json.dumps(sidecar, indent=1).encode())
        except OSError as error:
            self._writable = False
            warnings.warn(f"compiled kernels are not kept in {self._content} ({error})", stacklevel=2)

    def _signature(self, content: bytes) -> str | None:
        if self._key is None:
            return None
        signature = hmac.new(self._key, b"runtime.cache\0", hashlib.sha256)  # no file of the bundle starts like this
        signature.update(content)
        return signature.hexdigest()


def digest_of(content: bytes) -> bytes:
    """Its sha256."""
    return hashlib.sha256(content).digest()
