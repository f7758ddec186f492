"""A bundle's folder: one whole bundle at any time, and verified before anything in it is read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from ..errors import MOST_OF_A_COMMAND, ArgumentError, BundleError, a_path, shown
from ..storage.atomic import replace_file
from ..storage.hashed import SUFFIX
from ..storage.lock import held
from ..storage.regular import open_regular, read_regular
from ..version import __version__
from .manifest import (
    MANIFEST,
    NETWORKS,
    RUNTIME_CACHE,
    SCHEMA,
    DetectorManifest,
    Format,
    Manifest,
    PartManifest,
    StoredFile,
    manifest_from_json,
    prefix_of,
)
from .signature import ENTRIES, check_key, is_signed_by, signed

LIMIT_BYTES = 1 << 20  # of a manifest; a real one has some thousand
LOCK = ".lock"  # of who writes there
RUNTIME_CACHES = [prefix + RUNTIME_CACHE for prefix in ("", *map(prefix_of, NETWORKS))]
KEPT = {cache + ending for cache in RUNTIME_CACHES for ending in ("", SUFFIX)}  # by a runtime
BESIDE = {LOCK, *KEPT, *(f"{cache}.lock" for cache in RUNTIME_CACHES)}  # ours, and no part of the bundle
_PART = r"\.[0-9a-f]{32}\.part"
_STAGED = r"\.[A-Za-z0-9_][A-Za-z0-9._-]*\.[0-9a-f]{16}"
# What a save that was broken off may leave.
LEFT = re.compile(rf"{_STAGED}({_PART})?|({'|'.join(map(re.escape, (MANIFEST, *sorted(KEPT))))}){_PART}")

T = TypeVar("T")


@dataclass(frozen=True)
class Bundle:
    """A folder whose every file has been verified.

    digest: of its manifest, which stands for all of it; signed: whether there is a signature, checked or not
    """

    folder: Path
    manifest: Manifest | DetectorManifest
    digest: str
    signed: bool
    _kept: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def read(self, name: str) -> bytes:
        """A file of the manifest: as it was verified, or verified again. Raises BundleError if it is another by now."""
        if name in self._kept:
            return self._kept.pop(name)
        return self._found(name, self._content)

    def engines(self) -> dict[str, StoredEngine]:
        """Of a detector by the names of its networks, else the one called ""."""
        if isinstance(self.manifest, Manifest):
            return {"": StoredEngine(self, self.manifest)}
        parts = map(self.manifest.part, self.manifest.networks)
        return {part.name: StoredEngine(self, part, prefix_of(part.name)) for part in parts}

    def verify(self, name: str, *, keep: bool) -> None:
        """Raises BundleError if a file is not what the manifest says. keep: its bytes, for one `read`."""
        if keep:
            self._kept[name] = self.read(name)
        else:
            self._found(name, self._hashed)

    def _found(self, name: str, look: Callable[[str, Path], T]) -> T:
        """What `look` makes of a file, in its place or where a save has put it first. Raises BundleError if it is in
        neither."""
        place = self.folder / name
        try:
            return look(name, place)
        except BundleError:
            for other in (self.folder / _staged(name, self.manifest.files[name].sha256), place):  # moved meanwhile
                with suppress(BundleError):
                    return look(name, other)
            raise

    def _content(self, name: str, path: Path) -> bytes:
        self._check_size(name, path)
        content = _read(path)
        self._check(name, StoredFile(hashlib.sha256(content).hexdigest(), len(content)))
        return content

    def _hashed(self, name: str, path: Path) -> None:
        size = self._check_size(name, path)
        self._check(name, StoredFile(_file_sha256(path), size))

    def _check_size(self, name: str, path: Path) -> int:
        """Before a byte of the file is read."""
        size = _size(path)
        self._check(name, self.manifest.files[name]._replace(bytes=size))
        return size

    def _check(self, name: str, found: StoredFile) -> None:
        stored = self.manifest.files[name]
        if found != stored:
            raise BundleError(
                f"{self.folder / name} is not the file that the bundle was made with: it has {found.bytes:,} bytes of "
                f"{stored.bytes:,}, or another sha256; copy the bundle again, or make it again: "
                f"{shown(self.manifest.rebuild, MOST_OF_A_COMMAND)}"
            )


@dataclass(frozen=True)
class StoredEngine:
    """One engine of a bundle: a Conformer's, or that of one network of a detector.

    manifest: of this engine: its files are called as in the backend's Format
    prefix:   of its files' names in the folder
    """

    bundle: Bundle
    manifest: Manifest | PartManifest
    prefix: str = ""

    @property
    def folder(self) -> Path:
        return self.bundle.folder

    @property
    def signed(self) -> bool:
        return self.bundle.signed

    def read(self, name: str) -> bytes:
        """As a Bundle's."""
        return self.bundle.read(self.prefix + name)


def read_bundle(folder: str | os.PathLike[str], format_of: Callable[[str], Format], key: bytes | None = None) -> Bundle:
    """Verifies the manifest, its signature if there is a key, and then every file that it names; others may lie there.

    format_of: of a backend, by its name; raises ValueError for an unknown one

    Raises BundleError for a folder that is no whole, unchanged bundle, or one not signed with this key; ArgumentError
    for what is no key.
    """
    check_key(key, signs=False)
    folder = Path(os.path.abspath(bundle_path(folder)))
    with suppress(BundleError):
        return _verified_bundle(folder, format_of, key)
    with ExitStack() as alone:
        # Perhaps saves were going on meanwhile: now none is.
        if (folder / MANIFEST).is_file() and _is_lock(folder / LOCK):
            with suppress(OSError):  # a folder that cannot be written has none
                alone.enter_context(held(FileLock(folder / LOCK)))
        return _verified_bundle(folder, format_of, key)


def bundle_path(folder: str | os.PathLike[str]) -> Path:
    """Where a bundle is or is to be. Raises ArgumentError for what no folder can be called."""
    path = a_path("the bundle", folder)
    if "\0" in str(path):
        raise ArgumentError(f"{shown(path)} cannot be a bundle's name (it has a NUL); give another")
    return path


def _verified_bundle(folder: Path, format_of: Callable[[str], Format], key: bytes | None) -> Bundle:
    """One try of `read_bundle`."""
    bundle = Bundle(folder, *_parsed(folder / MANIFEST, key))
    try:
        form = format_of(bundle.manifest.backend)
        bundle.manifest.check(form)
    except ValueError as error:
        raise _unusable(folder / MANIFEST, error) from error
    kept = {*bundle.manifest.all_named(form.read_once), bundle.manifest.labels}
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(bundle.verify, name, keep=name in kept) for name in bundle.manifest.files]
    for check in checks:
        check.result()  # raises what it raised
    return bundle


def write_bundle(
    folder: str | os.PathLike[str],
    manifest: Manifest | DetectorManifest,
    files: Mapping[str, bytes],
    key: bytes | None = None,
) -> Path:
    """Writes a bundle of `files`, whole or not at all, and returns its folder.

    folder:   a new one, an empty one, or one with nothing but an earlier bundle, which is replaced; who reads it
              meanwhile gets the earlier one or the new one
    manifest: without `files`
    key:      signs it: a secret, or the PEM file's bytes of a private key

    Raises BundleError when the folder holds anything else, or cannot be written.
    """
    check_key(key, signs=True)
    folder = Path(folder).resolve()
    stored = {name: StoredFile(hashlib.sha256(content).hexdigest(), len(content)) for name, content in files.items()}
    content = replace(manifest, files=stored).to_json()
    content |= signed(_dump(content), key)
    content["digest"] = _digest(content)
    new = not folder.exists()
    try:
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with held(FileLock(folder / LOCK)):
                check_writable(folder)
                _put(folder, files, stored, _dump(content))
        except BaseException:
            if new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be written: {error}; nothing was changed") from error
    return folder


def _put(folder: Path, files: Mapping[str, bytes], stored: Mapping[str, StoredFile], manifest: bytes) -> None:
    """Writes each file beside its place, then the manifest, which makes the bundle another one, then tidies.

    Nothing that the earlier manifest names is touched before it is replaced, and `Bundle` finds a file in either place,
    so there is one whole bundle or the other at any time, whenever this is broken off.
    """
    try:
        with suppress(FileNotFoundError):
            earlier = read_regular(folder / MANIFEST)
            replace_file(folder / _staged(MANIFEST, hashlib.sha256(earlier).hexdigest()), earlier, 0o666)
        for name, content in files.items():
            replace_file(folder / _staged(name, stored[name].sha256), content, 0o666)
        replace_file(folder / MANIFEST, manifest, 0o666)
    finally:
        _tidy(folder)


def _tidy(folder: Path) -> None:
    """Moves a bundle's files to their places, and removes what earlier bundles and broken-off saves have left.

    Nothing depends on it: what cannot be moved or removed, as under Windows while somebody reads it, stays for later.
    """
    named = _named(folder / MANIFEST)
    for name, file in named.items():
        with suppress(OSError):  # most lie there already
            os.replace(folder / _staged(name, file.sha256), folder / name)
    staged = {_staged(name, file.sha256) for name, file in named.items()}
    left = [path for path in folder.iterdir() if path.name not in staged and _is_left(path)]
    earlier = [_named(path) for path in left if path.name.startswith(f".{MANIFEST}.")]
    obsolete = {name for names in earlier for name in names} - named.keys()
    if any(names != named for names in earlier):
        obsolete |= KEPT
    for path in (*(folder / name for name in obsolete), *left):  # the earlier manifests last: they name the others
        with suppress(OSError):
            path.unlink()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that is put in its place."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_ino, status.st_mtime_ns
    return None


def _staged(name: str, sha256: str) -> str:
    """What a file is called from its writing until it takes its place. No bundle's file starts with a point."""
    return f".{name}.{sha256[:16]}"


def _named(path: Path) -> Mapping[str, StoredFile]:
    """The files that a manifest names; none if there is none that can be read."""
    try:
        return _parsed(path, None)[0].files
    except BundleError:
        return {}


def check_writable(folder: str | os.PathLike[str], key: bytes | None = None) -> None:
    """Raises BundleError if a bundle written there would take something else away; ArgumentError for a key that
    cannot sign."""
    check_key(key, signs=True)
    folder = bundle_path(folder)
    while _others(folder):
        before = _stamp(folder / MANIFEST)
        others = [name for name in _others(folder) if os.path.lexists(folder / name)]
        if others and _stamp(folder / MANIFEST) == before:  # else a save was just there
            raise BundleError(
                f"{folder} holds files that are no bundle's: {', '.join(others[:3])}{', ...' if others[3:] else ''}; "
                f"move them away or give another folder"
            )


def _others(folder: Path) -> list[str]:
    """What is there beside a bundle, and what saves leave."""
    try:
        there = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file, or lies in one; give the folder that the bundle is to be") from None
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be written: {error}; nothing was changed") from error
    known = BESIDE.copy()
    if not _is_lock(folder / LOCK):
        known.remove(LOCK)
    for name in there:
        if name == MANIFEST or name.startswith(f".{MANIFEST}."):
            files = _named(folder / name)
            staged = (_staged(file, stored.sha256) for file, stored in files.items())
            known |= {name, *files, *staged} if files else set()
    return sorted(name for name in there - known if not _is_left(folder / name))


def _is_left(path: Path) -> bool:
    """Whether a save has left it: what it has written is called by its hash."""
    if not LEFT.fullmatch(path.name) or path.name.endswith(".part"):
        return bool(LEFT.fullmatch(path.name))
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16] == path.name[-16:]
    except OSError as error:
        return error.errno == errno.ENOENT  # moved to its place meanwhile


def _is_lock(path: Path) -> bool:
    """Whether there is none, or one that says no more than who holds it."""
    try:
        content = read_regular(path, 20)
    except OSError as error:  # Windows lets nobody read one that is held
        return error.errno not in (errno.EFBIG, errno.EINVAL, errno.EISDIR)
    return not content or content.isdigit()


def _parsed(path: Path, key: bytes | None) -> tuple[Manifest | DetectorManifest, str, bool]:
    """A manifest whose digest is right, and its HMAC if there is a key; its digest, and whether it is signed."""
    size = _size(path)
    if size > LIMIT_BYTES:
        raise BundleError(f"{path} has {size:,} bytes, a manifest at most {LIMIT_BYTES:,}; copy the bundle again")
    content, digest, signed = _verified(_read(path), path, key)
    try:
        return manifest_from_json(content), digest, signed
    except (ValueError, TypeError, RecursionError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path} is no bundle's manifest: {shown(error)}; make the bundle again")


def _verified(data: bytes, path: Path, key: bytes | None) -> tuple[dict[str, Any], str, bool]:
    """A manifest's content without digest and HMAC, which are right, its digest, and whether there is an HMAC."""
    try:
        content = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
        same = isinstance(content, dict) and _dump(content) == data
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {shown(error)}; copy the bundle again") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int:
        raise BundleError(f"{path} is no bundle's manifest; give the folder of a bundle")
    if schema != SCHEMA:
        todo = "install a newer one to load it" if schema > SCHEMA else "make the bundle again"
        raise BundleError(f"{path} has schema {schema}, conformer_fast {__version__} reads {SCHEMA}; {todo}")
    digest = content.pop("digest", None) if same else None
    if digest != _digest(content):
        raise BundleError(f"{path} is damaged or was edited: it does not match its digest; copy the bundle again")
    entries = {name: content.pop(name) for name in ENTRIES if name in content}
    is_signed = any(entry is not None for entry in entries.values())
    if key is None:
        return content, digest, is_signed
    if not is_signed:
        raise BundleError(f"{path} is not signed, and a key was given; sign it: save(folder, key=...)")
    if not is_signed_by(key, _dump(content), entries):
        raise BundleError(f"{path} is not signed with this key; get the bundle from its owner, or the right key")
    return content, digest, True


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_dump(content)).hexdigest()


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


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
        return read_regular(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _file_sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path} cannot be read ({error.strerror}); give the folder of a whole bundle")
