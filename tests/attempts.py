"""One damaged file after another given to what reads it: each time it is read, or refused in words of ours, and nothing
else happens. For tests/hostile."""

from __future__ import annotations

import faulthandler
import gc
import os
import stat
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from effort import EFFORT
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

SECONDS = 10.0  # of all cores, that one file may take
HANGS = 120.0  # after so many by the clock the process is ended, with a traceback of every thread
LETTERS = 1000  # of a message
RUNS = {  # what Python tells its audit hooks when code, programs or networks are asked for
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "ctypes.dlopen", "code.__new__"),
}
CHANGES = {  # ... and when a file is to be changed: which of its arguments are paths
    **dict.fromkeys(
        ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree"), (0,)
    ),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move"), (0, 1)),
}
REMOVES = ("os.remove", "os.rmdir")
T = TypeVar("T")


class NotAllowedError(BaseException):
    """Something that no reader does. No exception of ours or of a library: nobody may pass it over."""


def every(examples: SearchStrategy[Any], count: int, attempt: Callable[[Any], None]) -> None:
    """Makes `attempt` with `count` of the examples, EFFORT times: hypothesis keeps what it has drawn until it is done.
    The last file that failed is where pytest keeps what a test wrote."""
    for turn in range(EFFORT):
        if turn:
            gc.collect()
        settings(max_examples=count)(given(examples)(attempt))()


class Attempts:
    """Calls that read files of `folder`, and how each ended.

    counts: "refused" (one of the errors, in words that name the file), "equal" and "other": what `read` was told
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, Counter({"refused": 0, "equal": 0, "other": 0})

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        return path

    def read(
        self,
        call: Callable[[], T],
        errors: type[Exception] | tuple[type[Exception], ...],
        names: Path | str,
        equal: Callable[[T], bool],
        warns: tuple[str, ...] = (),
        instead: object = None,
        locks: Path | None = None,
        writes: Path | None = None,
    ) -> T | None:
        """What the call returns; None if it was refused.

        errors:  that it may raise; names: what their messages must have in them
        equal:   whether a result is what the undamaged file gives; raises AssertionError for one that cannot be at all
        warns:   parts of warnings of ours that may be given
        instead: what it returns, with a warning, where the file is refused
        locks:   a folder in which a file may be made that is gone afterwards; writes: in which files may change
        """
        changes = [folder for folder in (locks, writes) if folder]
        result, refusal = None, None
        with self.timed(), said() as texts, untouched(self.folder, but=writes), nothing_run(changes):
            try:
                result = call()
            except errors as error:
                refusal = str(error)
        for text in texts:
            check_words(text)
            assert any(part in text for part in warns), f"warns: {text:.500}"
        if refusal is not None:
            check_words(refusal)
            assert str(names) in refusal, f"{refusal:.500} does not name {names}"
        if refusal is not None or (texts and instead is not None and result == instead):
            self.counts["refused"] += 1
            return None
        self.counts["equal" if equal(result) else "other"] += 1
        return result

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Raises AssertionError if it takes long; a process that hangs is ended, and hang.txt says where."""
        with _within(SECONDS, self.folder / "hang.txt"):
            yield

    def check(self) -> None:
        """That a damaged file was refused, and the undamaged one read."""
        assert self.counts["refused"], self.counts
        assert self.counts["equal"], self.counts


def check_words(text: str, letters: int = LETTERS) -> None:
    """Raises AssertionError unless it is a message: one line, not long, that any terminal prints as it is."""
    assert text.isprintable(), f"not one line that can be printed: {text!r:.500}"
    assert 0 < len(text) <= letters, f"{len(text)} characters: {text:.500}"


@contextmanager
def said() -> Iterator[list[str]]:
    """Every warning inside, whoever gives it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts: list[str] = []
        yield texts
        texts += [str(one.message) for one in caught]


@contextmanager
def _within(seconds: float, trace: Path) -> Iterator[None]:
    """Raises AssertionError if it took longer; a process that hangs is ended."""
    started = time.process_time()
    with open(trace, "w") as file:
        faulthandler.dump_traceback_later(HANGS, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    taken = time.process_time() - started
    assert taken < seconds, f"took {taken:.1f} s"


@contextmanager
def untouched(folder: Path, but: Path | None = None) -> Iterator[None]:
    """Raises AssertionError if anything below it is another one afterwards. but: a folder in it that may change."""
    before = _below(folder, but)
    yield
    after = _below(folder, but)
    assert after == before, f"changed: {sorted(set(after.items()) ^ set(before.items()))}"


def _below(folder: Path, but: Path | None) -> dict[str, tuple[int, ...]]:
    found = {}
    for place, folders, files in os.walk(folder):
        if place == str(but):
            folders.clear()
            continue
        for name in (*folders, *files):
            if name != "hang.txt":
                status = os.lstat(os.path.join(place, name))
                size = status.st_size if stat.S_ISREG(status.st_mode) else 0
                found[os.path.join(place, name)] = (status.st_mode, status.st_ino, size)
    return found


@contextmanager
def memory_within(megabytes: int) -> Iterator[None]:
    """Raises AssertionError if the process takes so much more at any time inside. Linux alone tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _peak()
    except OSError:
        yield
        return
    yield
    grown = (_peak() - before) >> 10
    assert grown < megabytes, f"{grown} MB"


def _peak() -> int:
    """In kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


# What Python says of itself: code, programs, networks and files that are asked for

_allowed: list[tuple[tuple[str, ...], Collection[str]]] = []  # folders and events; without any, nothing is looked at
_hooked = False


@contextmanager
def nothing_run(changes: Iterable[Path] = (), but: Collection[str] = ()) -> Iterator[None]:
    """Raises NotAllowedError in who runs a program or code of a file, opens a connection, or changes a file that is in
    none of these folders; it is not done then, and raised here again if it was passed over. but: events that may be."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _allowed.append((tuple(os.path.realpath(folder) + os.sep for folder in changes), but))
    _violations.clear()
    try:
        yield
    finally:
        _allowed.pop()
    if _violations:
        raise NotAllowedError(_violations[0])


_violations: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in RUNS and event not in _allowed[-1][1]:
        _refuse(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else set(mode) & set("wax+")
        if written:
            _check_change(event, path)
    elif event in CHANGES:
        if event in REMOVES and arguments[1] != -1:
            return  # in a folder that is open: of shutil.rmtree, which was looked at
        if event == "os.mkdir" and os.path.lexists(arguments[0]):
            return  # it will fail
        for index in CHANGES[event]:
            _check_change(event, arguments[index])


def _check_change(event: str, path: Any) -> None:
    if isinstance(path, int):
        return  # a file that is open
    folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    real = os.path.join(os.path.realpath(folder), name, "")
    if "__pycache__" not in real and not real.startswith(_allowed[-1][0]):
        _refuse(f"{event} {path!r}")


def _refuse(what: str) -> None:
    _violations.append(what)
    raise NotAllowedError(what)
