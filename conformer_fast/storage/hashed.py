"""A file and beside it, as JSON, its sha256: what is read is what was written or, with a key, what the key has signed.

Cache libraries lock and evict, but give back what they find; engines and kernels are run by native code, which must not
be given bytes that nobody vouches for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import ConformerFastError
from .atomic import replace_file
from .lock import held
from .regular import open_regular, read_regular

SUFFIX = ".hash"  # of the JSON file: a list of records, the newest first
LIMIT_BYTES = 1 << 20  # of that file; a real one has some hundred


class DamagedError(ConformerFastError, ValueError):
    """The file is not what was written."""


class UnsignedError(ConformerFastError, ValueError):
    """The file is what was written, but not by who has the key."""


class HashedFile:
    """The content at `path`, and `path` + ".hash" with its sha256 and fields. `path` + ".lock" keeps processes apart.

    key:         signs both (HMAC-SHA256); then nothing is read that this key has not signed. A sha256 alone finds
                 damage, not malice.
    folder_mode: who may look into the folder if it is made; None: it must be there

    Two objects for one path share nothing but the files; each may be used by several threads.
    """

    def __init__(self, path: Path, key: bytes | None = None, *, folder_mode: int | None = 0o700) -> None:
        self.path = path
        self._key, self._folder_mode = key, folder_mode
        self._beside = path.with_name(path.name + SUFFIX)
        self.lock = path.with_name(path.name + ".lock")
        self._lock = FileLock(self.lock)
        self._writable = True  # as far as write_or_warn knows

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else reads or writes meanwhile. May be nested. Raises OSError if the folder cannot be written."""
        if self._folder_mode is None:
            self.path.parent.stat()  # the lock would make the folder
        else:
            self.path.parent.mkdir(mode=self._folder_mode, parents=True, exist_ok=True)
        with held(self._lock):
            yield

    @contextmanager
    def locked_if_writable(self) -> Iterator[None]:
        """`locked`; but a folder that cannot be written has no writers to wait for."""
        with ExitStack() as held:
            with suppress(OSError):
                held.enter_context(self.locked())
            yield

    def read(self, fields: Mapping[str, Any] | None = None) -> bytes | None:
        """What was written last; None if nothing was. Raises DamagedError or UnsignedError, which name the file.

        fields: that it must have been written with; None: any
        """
        if not os.path.lexists(self._beside):
            return None
        with self.locked_if_writable():
            try:
                content = read_regular(self.path)
            except OSError:
                content = None
            records = self._records()
        digest = None if content is None else hashlib.sha256(content).hexdigest()
        record = next((record for record in records if record["sha256"] == digest), None)
        if record is None:
            if not os.path.lexists(self._beside):
                return None  # removed meanwhile
            raise DamagedError(f"{self.path} is damaged")
        if fields is not None and _sorted(record["fields"]) != _sorted(fields):
            raise DamagedError(f"{self.path} is damaged: it was written for something else, and renamed")
        if self._key is not None and not hmac.compare_digest(
            self._signature(self._key, record).encode(), str(record.get("hmac")).encode(errors="replace")
        ):
            raise UnsignedError(f"{self.path} is not signed by the key")
        return content

    def write(self, content: bytes, fields: Mapping[str, Any] | None = None) -> None:
        """Replaces what there is. fields: JSON values.

        A write that is broken off at any point leaves what was there before. Raises OSError if it cannot be written.
        """
        record = {"sha256": hashlib.sha256(content).hexdigest(), "fields": dict(fields or {})}
        if self._key is not None:
            record["hmac"] = self._signature(self._key, record)
        with self.locked():
            before = self._records()  # one of these is of the content, also after a write that was broken off
            if before:
                self._write_records([record, *before])
            replace_file(self.path, content)
            self._write_records([record])

    def read_or_warn(self, otherwise: str, fields: Mapping[str, Any] | None = None) -> bytes | None:
        """`read`, but a file that cannot be used is a warning, which says what is done otherwise, and None."""
        try:
            return self.read(fields)
        except (DamagedError, UnsignedError) as flaw:
            warnings.warn(f"{flaw}; {otherwise}", stacklevel=3)
            return None

    def write_or_warn(self, what: str, content: bytes, fields: Mapping[str, Any] | None = None) -> None:
        """`write`, but a folder that cannot be written is a warning, once, and costs only the keeping.

        what: is kept, in the plural
        """
        if not self._writable:
            return
        try:
            self.write(content, fields)
        except OSError as error:
            self._writable = False
            warnings.warn(f"{what} are not kept in {self.path} ({error})", stacklevel=3)

    def fields(self) -> dict[str, Any] | None:
        """Those of the last write; None if there is none that can be read."""
        records = self._records()
        return records[0]["fields"] if records else None

    def remove(self) -> None:
        """Removes it, if it is there. Raises OSError if it cannot."""
        self._beside.unlink(missing_ok=True)  # first: content without it is nothing
        self.path.unlink(missing_ok=True)

    def sha256(self) -> str:
        """Of a file that was not written here, such as a download. It is computed when the file's size, times of change
        in nanoseconds, place on the disk or owner are new, and kept if the folder can be written. Raises OSError if the
        file cannot be read, or is none."""
        with open_regular(self.path) as file:
            stat = os.fstat(file.fileno())
            fields = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
            fields |= {"inode": stat.st_ino, "owner": stat.st_uid}
            for record in self._records():
                if record["fields"] == fields:
                    return record["sha256"]
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):
            self._write_records([{"sha256": digest, "fields": fields}], mode=0o666)
        return digest

    def _records(self) -> list[dict[str, Any]]:
        """What the JSON file holds; nothing if it cannot be read."""
        try:
            records = json.loads(read_regular(self._beside, LIMIT_BYTES), parse_constant=_no_number)
            sound = all(isinstance(record["sha256"], str) and isinstance(record["fields"], dict) for record in records)
            json.dumps(records)  # not too deep for that
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        return records if sound and isinstance(records, list) else []

    def _write_records(self, records: list[dict[str, Any]], mode: int = 0o600) -> None:
        replace_file(self._beside, json.dumps(records, indent=1).encode(), mode)

    def _signature(self, key: bytes, record: Mapping[str, Any]) -> str:
        """Of the sha256 and the fields. The file's name in it: nothing else that the key signs starts like this."""
        signed = json.dumps([record["sha256"], record["fields"]], sort_keys=True)
        return hmac.new(key, f"{self.path.name}\0{signed}".encode(), hashlib.sha256).hexdigest()


def _sorted(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
