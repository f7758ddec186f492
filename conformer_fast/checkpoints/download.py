"""Fetches published weights into the cache: continued when cut, checked against the hash in their name.

Our own code, because `torch.hub.download_url_to_file`, which checks such names too, keeps nothing of a cut download.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
import warnings
from concurrent.futures import Future, wait
from pathlib import Path

from ..errors import DownloadError
from ..progress import Bar
from ..storage.hashed import HashedFile
from ..storage.lock import remove_free
from ..storage.paths import cache_root
from ..storage.regular import open_regular
from .mirror import MIRROR, OFFLINE, SHA256, check_scheme, is_offline, mirror, whole_hashes

FILES = {  # the last eight hex digits are the start of the file's sha256
    "tiny-p16": "conformer-tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372.pth",
    "small-p32": "conformer-small-p32_8xb128_in1k_20211206-947a0816.pth",
    "small-p16": "conformer-small-p16_3rdparty_8xb128_in1k_20211206-3065dcf5.pth",
    "base-p16": "conformer-base-p16_3rdparty_8xb128_in1k_20211206-bfdf8637.pth",
}
ATTEMPTS = 5
UNANSWERED = 2  # of them, at most
PAUSE = 1.0  # seconds before the second attempt; each further one waits twice as long
PATIENCE = 1.5  # seconds without an answer before the user is told
TIMEOUT = 15.0  # seconds without a byte
CHUNK = 1 << 20
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")  # of a Content-Range
# The same a moment later: no such name, nobody there, no address, another's certificate (which is a ValueError).
HOPELESS = (socket.gaierror, ConnectionRefusedError, http.client.InvalidURL, ValueError)
NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH)


class _CutError(Exception):
    """The connection failed or ended early; what was received stays in the part file. hopeless: it will again;
    unanswered: nobody said anything."""

    def __init__(self, message: str, hopeless: bool = False, unanswered: bool = False) -> None:
        super().__init__(message)
        self.hopeless, self.unanswered = hopeless, unanswered


def fetch(variant: str) -> Path:
    """The published weights of `variant`, from the cache or downloaded to it.

    A part file left by an interrupted download is continued. Each time the file must have the hash that its name has
    the start of and, if it is set, that of $CONFORMER_FAST_WEIGHTS_SHA256; a file that is the same as last time, by its
    size, times, owner and place on the disk, is not read again for that. Nothing is requested with
    CONFORMER_FAST_OFFLINE=1. Warnings say within 2 seconds that the server has not answered, and why it is tried again.

    Raises DownloadError when there is no such variant, no network, no such file on the server, an address that cannot
    be used, a wrong hash, or the cache folder cannot be written.
    """
    if variant not in FILES:
        raise DownloadError(f"no published weights for {variant!r}; there are weights for {', '.join(FILES)}")
    whole_hashes()  # raises before a download, not after it
    target = cache_root() / "weights" / FILES[variant]
    file = HashedFile(target, folder_mode=0o777)
    if not target.is_file():
        _check_plain(target)
        try:
            with file.locked():
                if not target.is_file():  # another process may have fetched it while this one waited
                    _download(target)
        except OSError as error:
            raise DownloadError(
                f"cannot write the cache folder {target.parent}: {error}; set CONFORMER_FAST_CACHE to another folder"
            ) from error
    elif os.path.lexists(file.lock):
        remove_free(file.lock)  # its process was killed when the download was whole
    _check_hash(target, file.sha256(), "remove it, or put the right file in its place")
    return target


def _download(target: Path) -> None:
    site = mirror()
    by_hand = f"download {site.url}/{target.name} elsewhere and put it at {target}"
    if is_offline():
        raise DownloadError(f"{OFFLINE} is set and {target.name} is not in the cache; {by_hand}")
    part = target.with_name(target.name + ".part")
    _check_plain(part)
    reason, unanswered = "", 0
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            pause = PAUSE * 2 ** (attempt - 2)
            _tell(f"{site.url}: {reason}; try {attempt} of {ATTEMPTS} in {pause:g} s")
            time.sleep(pause)
        try:
            _continue(site.request(target.name), part, f"{site.url} has not answered yet; try {attempt} of {ATTEMPTS}")
            break
        except _CutError as error:
            reason = str(error)
            unanswered += error.unanswered
            if error.hopeless or unanswered == UNANSWERED:
                tries = "" if attempt == 1 else f", tried {attempt} times"
                raise DownloadError(
                    f"{site.url} cannot be reached ({reason}{tries}); {_asked('is there a network?')} Else {by_hand}"
                ) from error
    else:
        raise DownloadError(f"no complete download after {ATTEMPTS} attempts ({reason}); try again later, or {by_hand}")
    with open_regular(part) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        _check_hash(part, found, f"it was removed; try again, or {by_hand}")
    except DownloadError:
        part.unlink()
        raise
    part.replace(target)


def _continue(request: urllib.request.Request, part: Path, waiting: str) -> None:
    """Appends to `part` what it lacks, or starts again where the server does not continue. Raises _CutError.

    waiting: what the user is told if there is no answer for PATIENCE
    """
    offset = part.stat().st_size if part.exists() else 0
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = _answer(request, waiting)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:  # nothing beyond what we have
                if error.headers.get("Content-Range") != f"bytes */{offset}":
                    part.unlink()
                    raise _CutError("the part file did not fit the server's file") from error
                return
            if error.code < 500 and error.code not in (408, 429):
                hint = _asked(f"name a mirror in {MIRROR}")
                raise DownloadError(f"{request.full_url}: {error.code} {error.reason}; {hint}") from error
            raise _CutError(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)  # of urllib's own error
        raise _CutError(str(error), _is_hopeless(cause), isinstance(cause, TimeoutError)) from error
    with response:
        check_scheme(response.url)  # where it was redirected to
        total = response.length
        if response.status == 206:
            sent = RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not sent or int(sent[1]) != offset:
                part.unlink(missing_ok=True)
                raise _CutError("the server sent another range than asked for")
            total = None if sent[2] == "*" else int(sent[2])
        else:
            offset = 0  # the server sends the whole file
        _receive(response, part, offset, total)


def _answer(request: urllib.request.Request, waiting: str) -> http.client.HTTPResponse:
    """What the server answers, of which a thread waits for the name, the connection and the headers: this one is free
    to say so. Raises what urlopen raises."""
    answer: Future[http.client.HTTPResponse] = Future()

    def ask() -> None:
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=TIMEOUT))
        except BaseException as error:  # raised again where it is waited for
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # no program waits for it at its end
    if not wait([answer], PATIENCE).done:
        _tell(waiting)
    return answer.result()


def _tell(text: str) -> None:
    """Warns, also if it has warned of the same before: `warnings.warn` would be silent at the next download."""
    warnings.warn_explicit(text, UserWarning, __file__, _tell.__code__.co_firstlineno, __name__)


def _asked(else_what: str) -> str:
    """What the user may look at, of a mirror that was named, or else."""
    return f"is {MIRROR} right?" if os.environ.get(MIRROR) else else_what


def _is_hopeless(cause: Exception) -> bool:
    """Whether trying again is no use."""
    unreachable = isinstance(cause, OSError) and cause.errno in NO_WAY
    return unreachable or isinstance(cause, HOPELESS)


def _receive(response: http.client.HTTPResponse, part: Path, offset: int, total: int | None) -> None:
    bar = Bar(part.stem, total, "B", done=offset, unit_scale=True, unit_divisor=1024)
    with part.open("ab" if offset else "wb") as file, bar:
        while True:
            try:
                chunk = response.read1(CHUNK)  # what has arrived, so that a cut loses none of it
            except (OSError, http.client.HTTPException) as error:
                raise _CutError(str(error)) from error
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
        received = file.tell()
    if total is not None and received < total:
        raise _CutError(f"the connection ended after {received} of {total} bytes")


def _check_hash(path: Path, found: str, advice: str) -> None:
    expected = path.name.removesuffix(".part").removesuffix(".pth").rsplit("-", 1)[1]
    if not found.startswith(expected):
        raise DownloadError(f"{path}: its sha256 begins with {found[: len(expected)]}, not {expected}; {advice}")
    whole = whole_hashes()
    if whole and found not in whole:
        raise DownloadError(f"{path}: its sha256, {found}, is none of {SHA256}; {advice}")


def _check_plain(path: Path) -> None:
    """Raises DownloadError when there is something that is no file, or a link, which are left alone."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise DownloadError(f"{path} is in the way of a download and no plain file; remove it")
