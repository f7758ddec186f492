"""Downloads from a local server: continued, checked, locked, and refused in words."""

import base64
import errno
import hashlib
import io
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
import urllib.response
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conformer_fast.checkpoints import download
from conformer_fast.checkpoints.download import fetch
from conformer_fast.errors import DownloadError
from conformer_fast.model.config import VARIANTS
from conformer_fast.storage.paths import cache_root

CONTENT = bytes(range(256)) * 4000
NAME = f"conformer-test_20260101-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Site:
    """A file server on 127.0.0.1 that notes the ranges asked for and misbehaves as told."""

    def __init__(self):
        self.ranges = []  # the Range header of each request, None where there was none
        self.content = CONTENT
        self.cut_after = []  # bytes after which the next responses end; whole responses once it is empty
        self.statuses = []  # statuses of the next responses, without content
        self.takes_ranges = True
        self.shift = 0  # sends a range that begins so many bytes late
        self.longest = len(CONTENT)  # of a range that it sends
        self.unit = "bytes"  # of the ranges
        self.redirects = []  # where the next requests are sent
        self.authorizations = []  # of each request
        self.released = threading.Event()  # content is sent once this is set
        self.released.set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # of those who leave early, as where the disk is full
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        self.authorizations.append(request.headers.get("Authorization"))
        if self.redirects:
            return self.head(request, 302, {"Location": self.redirects.pop(0)})
        if self.statuses:
            return self.head(request, self.statuses.pop(0))
        if request.path != f"/weights/{NAME}":
            return self.head(request, 404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.takes_ranges else 0
        if start >= len(self.content):
            return self.head(request, 416, {"Content-Range": f"bytes */{len(self.content)}"})
        start += self.shift if asked else 0
        body = self.content[start:][: self.longest if asked else None]
        headers = {"Content-Length": len(body)}
        if asked and self.takes_ranges:
            headers["Content-Range"] = f"{self.unit} {start}-{start + len(body) - 1}/{len(self.content)}"
        self.head(request, 206 if "Content-Range" in headers else 200, headers)
        self.released.wait(30)
        request.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)

    def head(self, request, status, headers=()):
        request.send_response(status)
        for name, value in dict(headers).items():
            request.send_header(name, str(value))
        request.end_headers()


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site()
    monkeypatch.setitem(download.FILES, "tiny-p16", NAME)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", site.url + "/")
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE", raising=False)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights" / NAME


@pytest.fixture
def part(target):
    target.parent.mkdir(parents=True)
    return target.with_name(NAME + ".part")


def _refusal():
    with pytest.raises(DownloadError) as caught:
        fetch("tiny-p16")
    return str(caught.value)


def test_a_file_is_downloaded_once(site, target):
    assert fetch("tiny-p16") == target
    assert target.read_bytes() == CONTENT
    assert site.ranges == [None]
    assert not list(target.parent.glob("*.part"))
    assert fetch("tiny-p16") == target
    assert site.ranges == [None]


def test_a_cut_download_is_continued(site, target):
    site.cut_after = [1000, 250_000]
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000-", "bytes=251000-"]


def test_a_later_call_continues_where_the_last_gave_up(site, target):
    site.cut_after = [1000] * download.ATTEMPTS
    message = _refusal()
    assert f"no complete download after {download.ATTEMPTS} attempts" in message
    assert f"the connection ended after {1000 * download.ATTEMPTS} of {len(CONTENT)} bytes" in message
    assert f"download {site.url}/{NAME} elsewhere and put it at {target}" in message
    assert not target.exists()
    site.ranges.clear()
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [f"bytes={1000 * download.ATTEMPTS}-"]


def test_a_server_without_ranges_starts_again(site, target):
    site.takes_ranges = False
    site.cut_after = [1000]
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=1000-"]


def test_a_range_that_was_not_asked_for_is_not_appended(site, part):
    part.write_bytes(CONTENT[:1000])
    site.shift = 7
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-", None]


def test_a_range_that_ends_early_is_continued(site, part):
    part.write_bytes(CONTENT[:1000])
    site.longest = len(CONTENT) // 2
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [f"bytes={1000 + done * site.longest}-" for done in range(2)]


def test_a_range_of_another_kind_is_not_appended(site, part):
    part.write_bytes(CONTENT[:1000])
    site.unit = "lines"
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-", None]


def test_a_part_that_is_already_whole_is_taken(site, part):
    part.write_bytes(CONTENT)
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_dropped(site, part):
    part.write_bytes(CONTENT + b"more")
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_hash_names_both_and_removes_the_part(site, target):
    site.content = CONTENT[:-1] + b"?"
    found, expected = hashlib.sha256(site.content).hexdigest()[:8], NAME[-12:-4]
    message = _refusal()
    assert f"its sha256 begins with {found}, not {expected}; it was removed" in message
    assert not target.exists()
    assert not list(target.parent.glob("*.part"))
    assert site.ranges == [None]


def test_a_missing_file_is_not_tried_again(site):
    site.statuses = [404]
    message = _refusal()
    assert f"{site.url}/{NAME}: 404" in message
    assert site.ranges == [None]


def test_a_busy_server_is_tried_again(site):
    site.statuses = [503, 429]
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.ranges == [None] * 3


def test_offline_requests_nothing_and_says_where_to_put_the_file(site, target, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    message = _refusal()
    assert message.startswith("CONFORMER_FAST_OFFLINE is set")
    assert f"download {site.url}/{NAME} elsewhere and put it at {target}" in message
    target.write_bytes(CONTENT)
    assert fetch("tiny-p16") == target
    assert site.ranges == []


def test_no_server_says_where_to_put_the_file(site, target, monkeypatch):
    site.server.server_close()
    message = _refusal()
    assert "refused" in message
    assert f"download {site.url}/{NAME} elsewhere and put it at {target}" in message


def test_a_file_put_there_by_hand_is_checked_once(site, part, target, monkeypatch):
    checked = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: checked.append(file.name) or digest(file, name))
    target.write_bytes(CONTENT)
    for _ in range(3):
        assert fetch("tiny-p16") == target
    assert checked == [str(target)]
    target.write_bytes(CONTENT[:-1])  # another file in its place is checked again
    message = _refusal()
    assert f"{target}: its sha256 begins with" in message
    assert "remove it, or put the right file in its place" in message
    assert target.read_bytes() == CONTENT[:-1]
    assert site.ranges == []


def test_a_file_in_a_cache_that_cannot_be_written_is_taken(site, part, target):
    target.write_bytes(CONTENT)
    (target.parent / f"{NAME}.hash").mkdir()  # where it would be kept
    assert fetch("tiny-p16") == target


@pytest.mark.parametrize("later", [0, 1])
@pytest.mark.parametrize("how", ["written over", "another in its place"])
def test_a_damaged_file_under_a_kept_hash_is_refused(site, part, target, how, later):
    """Also one as long as the right one, and as old to the nanosecond or a moment later."""
    target.write_bytes(CONTENT)
    fetch("tiny-p16")
    stat = target.stat()
    if how == "written over":
        target.write_bytes(CONTENT[:-1] + b"?")
    else:
        part.write_bytes(CONTENT[:-1] + b"?")
        part.replace(target)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))
    assert "its sha256 begins with" in _refusal()


@pytest.mark.parametrize("kind", ["pipe", "no text", "link to a device"])
def test_a_marker_that_is_none_is_passed_over(site, part, target, kind):
    target.write_bytes(CONTENT)
    marker = target.with_name(f"{NAME}.hash")
    if kind == "pipe":
        os.mkfifo(marker)
    elif kind == "no text":
        marker.write_bytes(bytes(range(256)))
    else:
        marker.symlink_to("/dev/zero")
    assert fetch("tiny-p16") == target
    target.write_bytes(CONTENT[:-1] + b"?")
    assert "its sha256 begins with" in _refusal()


@pytest.mark.parametrize("which", [NAME, f"{NAME}.part"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing", "link to a file"])
def test_what_is_in_the_way_is_named_and_left_alone(site, part, target, tmp_path, kind, which):
    path, precious = target.with_name(which), tmp_path / "precious"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(precious)
    if kind == "link to a file":
        precious.write_bytes(CONTENT[:1000])
    if kind == "link to a file" and which == NAME:
        assert "its sha256 begins with" in _refusal()
    else:
        assert f"{path} is in the way of a download and no plain file; remove it" in _refusal()
        assert site.ranges == []
    assert precious.read_bytes() == CONTENT[:1000] if kind == "link to a file" else not precious.exists()
    assert path.is_fifo() or path.is_dir() or path.is_symlink()


def test_a_full_disk_is_named_and_the_download_continued(site, target):
    """As where a file may not grow beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = _refusal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith(f"cannot write the cache folder {target.parent}: [Errno {errno.EFBIG}]")
    assert site.ranges == [None]
    assert fetch("tiny-p16").read_bytes() == CONTENT


def test_others_may_read_what_was_downloaded(site, target):
    before = os.umask(0o022)
    try:
        fetch("tiny-p16")
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in (target.parent, *target.parent.iterdir())}
    assert (modes[""], modes[".pth"], modes[".hash"]) == (0o755, 0o644, 0o644)


def test_a_cache_that_cannot_be_written_is_named(site, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    message = _refusal()
    assert f"cannot write the cache folder {tmp_path / 'cache' / 'weights'}" in message
    assert "CONFORMER_FAST_CACHE" in message


def test_threads_download_once(site, target):
    site.released.clear()
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch("tiny-p16"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    site.released.set()
    for thread in threads:
        thread.join()
    assert results == [target] * 4
    assert site.ranges == [None]
    assert target.read_bytes() == CONTENT


def test_processes_download_once(site, target):
    site.released.clear()
    code = f"""
from conformer_fast.checkpoints import download
download.FILES["tiny-p16"] = {NAME!r}
print("ready", flush=True)
input()
print(download.fetch("tiny-p16"))
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    threading.Timer(0.5, site.released.set).start()  # both are in fetch by then
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [str(target)] * 2
    assert site.ranges == [None]


def test_nothing_is_printed_where_stderr_is_no_terminal(site, capfd):
    fetch("tiny-p16")
    assert capfd.readouterr() == ("", "")


def test_only_http_is_spoken(site, monkeypatch, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", tmp_path.as_uri())
    assert "must begin with https:// or http://" in _refusal()


@pytest.mark.parametrize(
    "address",
    [
        *("https://exämple.org/weights", "https://[nonsense]/weights", "https://[::1/weights", "https://host:port/"),
        *("https:///weights", "https://host/a b", "https://host/?token=1", "https://host/#a", "https://host:99999/"),
    ],
)
def test_what_is_no_address_is_refused(site, monkeypatch, address):
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", address)
    assert "CONFORMER_FAST_WEIGHTS_URL must be the address of a folder" in _refusal()


HOPELESS = {
    "no such name": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "no names at all": socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "no network": OSError(errno.ENETUNREACH, "Network is unreachable"),
    "no way to the host": OSError(errno.EHOSTUNREACH, "No route to host"),
    "another's certificate": ssl.SSLCertVerificationError(1, "certificate verify failed"),
    "no name can be so": UnicodeError("label too long"),
}


@pytest.mark.parametrize("error", HOPELESS.values(), ids=HOPELESS)
def test_what_cannot_work_costs_no_second_attempt(site, monkeypatch, error):
    asked = []

    def fail(host, *others, **options):
        asked.append(host)
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", "https://host.test/weights")
    message = _refusal()
    assert message.startswith("https://host.test/weights cannot be reached (")
    assert str(error) in message
    assert "is CONFORMER_FAST_WEIGHTS_URL right?" in message
    assert asked == ["host.test"]


def test_a_server_that_does_not_answer_is_tried_again(site, monkeypatch):
    asked = []

    def fail(host, *others, **options):
        asked.append(host)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "timed out" in _refusal()
    assert len(asked) == download.ATTEMPTS


@pytest.mark.parametrize("address", ["http://[nonsense]/a", "http://127.0.0.1:port/a"])
def test_a_redirection_to_no_address_costs_no_second_attempt(site, address):
    site.redirects = [address]
    assert f"{site.url} cannot be reached" in _refusal()
    assert site.ranges == [None]


def test_a_server_that_is_not_there_costs_no_second_attempt(site, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("it was tried again"))
    site.server.shutdown()  # else it may still take the first connection
    site.server.server_close()
    assert f"{site.url} cannot be reached" in _refusal()


@pytest.mark.parametrize("how", ["a mirror", "a redirection"])
def test_http_needs_a_whole_hash(site, target, monkeypatch, how):
    """Only 8 digits are in the names, which another file can be made to have."""
    monkeypatch.delenv("CONFORMER_FAST_WEIGHTS_SHA256")
    if how == "a redirection":
        answer = urllib.request.urlopen
        monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: answer(site.url + "/" + NAME))
        monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", "https://127.0.0.1/weights")
    message = _refusal()
    assert "weights are not taken over http://" in message
    assert "CONFORMER_FAST_WEIGHTS_SHA256" in message
    assert site.ranges == ([] if how == "a mirror" else [None])
    assert not target.exists()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", f"{'0' * 64}, {hashlib.sha256(CONTENT).hexdigest().upper()}")
    assert fetch("tiny-p16").read_bytes() == CONTENT


def test_the_whole_hash_decides_where_it_is_known(site, part, target, monkeypatch):
    found = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", found[:-1] + ("0" if found[-1] != "0" else "1"))
    assert f"its sha256, {found}, is none of CONFORMER_FAST_WEIGHTS_SHA256; it was removed" in _refusal()
    assert not part.exists()
    target.write_bytes(CONTENT)  # also of a file that was put there
    assert f"its sha256, {found}, is none of CONFORMER_FAST_WEIGHTS_SHA256; remove it" in _refusal()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", found[:8])
    target.unlink()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", "https://host.test/weights")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was requested first"))
    assert f"must be sha256 hashes of 64 hexadecimal digits, got '{found[:8]}'" in _refusal()
    monkeypatch.delenv("CONFORMER_FAST_WEIGHTS_SHA256")
    target.write_bytes(CONTENT)
    assert fetch("tiny-p16") == target


def test_only_http_is_redirected_to(site, monkeypatch):
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda *_, **__: urllib.response.addinfourl(io.BytesIO(), {}, "ftp://host/a")
    )
    assert "weights are not taken over ftp://" in _refusal()


def test_user_and_password_are_sent_and_never_printed(site, target, monkeypatch, capfd):
    address = site.url.replace("://", "://me:se%20cret@")
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", address)
    site.redirects = [f"{site.url}/{NAME}"]
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.authorizations == [f"Basic {base64.b64encode(b'me:se cret').decode()}", None]
    target.unlink()
    messages = []
    site.statuses = [404, *[503] * download.ATTEMPTS]
    messages += [_refusal(), _refusal()]
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    messages.append(_refusal())
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE")
    for wrong in ("ftp://me:se%20cret@host/", "https://me:se%20cret@host:port/", "me:se%20cret@host"):
        monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", wrong)
        messages.append(_refusal())
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", address)
    site.server.shutdown()
    site.server.server_close()
    messages.append(_refusal())
    assert len(set(messages)) == 7
    assert not [text for text in (*messages, *capfd.readouterr()) if "cret" in text or "me:" in text]


def test_unpublished_variants_are_named():
    with pytest.raises(DownloadError, match="no published weights for 'digits'; there are weights for tiny-p16"):
        fetch("digits")


def test_every_variant_has_a_published_file():
    assert download.FILES.keys() == VARIANTS.keys()
    for variant, name in download.FILES.items():
        assert name.startswith(f"conformer-{variant}_")
        assert re.search(r"-[0-9a-f]{8}\.pth$", name)


def test_the_cache_root(monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_CACHE", "elsewhere")
    assert cache_root() == Path("elsewhere")
    monkeypatch.setenv("CONFORMER_FAST_CACHE", "")
    assert cache_root().is_absolute()
    assert cache_root().name == "conformer-fast"
