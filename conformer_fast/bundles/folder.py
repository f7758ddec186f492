"""A bundle's folder: written whole or not at all, and verified before anything in it is read."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, ArgumentTypeError, BundleError
from ..version import __version__
from .manifest import MANIFEST, RUNTIME_CACHE, SCHEMA, Format, Manifest, StoredFile

LIMIT_BYTES = 1 << 20  # of a manifest; a real one has some thousand


@dataclass(frozen=True)
class Bundle:
    """A folder whose every file has been verified.

    digest: of its manifest, which stands for all of it; signed: whether there is an HMAC, checked or not
    """

    folder: Path
    manifest: Manifest
    digest: str
    signed: bool
    _kept: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def read(self, name: str) -> bytes:
        """A file of the manifest: as it was verified, or verified again. Raises BundleError if it is another by now."""
        if name in self._kept:
            return self._kept.pop(name)
        self._check_size(name)
        content = _read(self.folder / name)
        self._check(name, StoredFile(hashlib.sha256(content).hexdigest(), len(content)))
        return content

    def verify(self, name: str, *, keep: bool) -> None:
        """Raises BundleError if a file is not what the manifest says. keep: its bytes, for one `read`."""
        if keep:
            self._kept[name] = self.read(name)
        else:
            size = self._check_size(name)
            self._check(name, StoredFile(_file_sha256(self.folder / name), size))

    def _check_size(self, name: str) -> int:
        """Before a byte of the file is read."""
        size = _size(self.folder / name)
        self._check(name, self.manifest.files[name]._replace(bytes=size))
        return size

    def _check(self, name: str, found: StoredFile) -> None:
        stored = self.manifest.files[name]
        if found != stored:
            raise BundleError(
                f"{self.folder / name} is not the file that the bundle was made with: it has {found.bytes:,} bytes of "
                f"{stored.bytes:,}, or another sha256; copy the bundle again, or make it again: {self.manifest.rebuild}"
            )


def read_bundle(folder: str | os.PathLike[str], format_of: Callable[[str], Format], key: bytes | None = None) -> Bundle:
    """Verifies the manifest, its HMAC if there is a key, and then every file that it names. Other files may lie there.

    format_of: of a backend, by its name; raises ValueError for an unknown one

    Raises BundleError for a folder that is no whole, unchanged bundle, or one not signed with this key; ArgumentError
    for a key that is not a few bytes.
    """
    _check_key(key)
    folder = Path(os.path.abspath(folder))
    bundle = Bundle(folder, *_parsed(folder / MANIFEST, key))
    try:
        form = format_of(bundle.manifest.backend)
        bundle.manifest.check(form)
    except ValueError as error:
        raise _unusable(folder / MANIFEST, error) from error
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(bundle.verify, name, keep=name in form.read_once) for name in bundle.manifest.files]
    for check in checks:
        check.result()  # raises what it raised
    return bundle


def write_bundle(
    folder: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes], key: bytes | None = None
) -> Path:
    """Writes a bundle of `files`, whole or not at all, and returns its folder.

    folder:   a new one, an empty one, or one with nothing but an earlier bundle, which is replaced
    manifest: without `files`
    key:      signs it

    Raises BundleError when the folder holds anything else, or cannot be written.
    """
    _check_key(key)
    folder = Path(folder).resolve()
    stored = {name: StoredFile(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}
    content = replace(manifest, files=stored).to_json()
    content["hmac"] = None if key is None else _signature(content, key)
    content["digest"] = _digest(content)
    try:
        check_writable(folder)
        mark = uuid.uuid4().hex[:8]
        new, old = (folder.with_name(f".{folder.name}-{mark}-{kind}") for kind in ("new", "old"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        try:
            for name, data in {**files, MANIFEST: _dump(content)}.items():
                (new / name).write_bytes(data)
            _put(new, folder, old)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be written: {error}; nothing was changed") from error
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _put(new: Path, folder: Path, old: Path) -> None:
    """Renames `new` to `folder`, and what was there to `old`."""
    with suppress(FileNotFoundError):
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:  # Ctrl-C too
        with suppress(FileNotFoundError):
            old.rename(folder)
        raise


def check_writable(folder: str | os.PathLike[str], key: bytes | None = None) -> None:
    """Raises BundleError if a bundle written there would take something else away; ArgumentError for a key that is not
    a few bytes."""
    _check_key(key)
    folder = Path(folder)
    try:
        there = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file, or lies in one; give the folder that the bundle is to be") from None
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be written: {error}; nothing was changed") from error
    known: set[str] = set()
    if MANIFEST in there:
        with suppress(BundleError):
            known = {MANIFEST, *_parsed(folder / MANIFEST, None)[0].files}
    others = sorted(name for name in there - known if not name.startswith(RUNTIME_CACHE))
    if others:
        raise BundleError(
            f"{folder} holds files that are no bundle's: {', '.join(others[:3])}{', ...' if others[3:] else ''}; "
            f"move them away or give another folder"
        )


def _parsed(path: Path, key: bytes | None) -> tuple[Manifest, str, bool]:
    """A manifest whose digest is right, and its HMAC if there is a key; its digest, and whether it is signed."""
    size = _size(path)
    if size > LIMIT_BYTES:
        raise BundleError(f"{path} has {size:,} bytes, a manifest at most {LIMIT_BYTES:,}; copy the bundle again")
    content, digest, signed = _verified(_read(path), path, key)
    try:
        return Manifest.from_json(content), digest, signed
    except (ValueError, TypeError, RecursionError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path} is no bundle's manifest: {error}; make the bundle again")


def _verified(data: bytes, path: Path, key: bytes | None) -> tuple[dict[str, Any], str, bool]:
    """A manifest's content without digest and HMAC, which are right, its digest, and whether there is an HMAC."""
    try:
        content = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
        same = isinstance(content, dict) and _dump(content) == data
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}; copy the bundle again") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int:
        raise BundleError(f"{path} is no bundle's manifest; give the folder of a bundle")
    if schema != SCHEMA:
        todo = "install a newer one to load it" if schema > SCHEMA else "make the bundle again"
        raise BundleError(f"{path} has schema {schema}, conformer_fast {__version__} reads {SCHEMA}; {todo}")
    digest = content.pop("digest", None) if same else None
    if digest != _digest(content):
        raise BundleError(f"{path} is damaged or was edited: it does not match its digest; copy the bundle again")
    signature = content.pop("hmac", None)
    if key is None:
        return content, digest, signature is not None
    if signature is None:
        raise BundleError(f"{path} is not signed, and a key was given; sign it: save(folder, key=...)")
    if not hmac.compare_digest(_signature(content, key).encode(), str(signature).encode(errors="replace")):
        raise BundleError(f"{path} is not signed with this key; get the bundle from its owner, or the right key")
    return content, digest, True


def _signature(content: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, _dump(content), "sha256").hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_dump(content)).hexdigest()


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _check_key(key: bytes | None) -> None:
    if key is not None and not isinstance(key, bytes):
        raise ArgumentTypeError(f"a bundle's key must be bytes, got {type(key).__name__}")
    if key == b"":
        raise ArgumentError("a bundle's key must have at least one byte; give None to do without")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an entry is there twice")
    return found


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _size(path: Path) -> int:
    """In bytes. Raises BundleError if it is not a file of its own."""
    try:
        status = path.lstat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is a link or a folder, a bundle's files must be plain files; copy the bundle again")
    return status.st_size


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read ({error.strerror}); give the folder of a whole bundle")
