"""Downloads from a local server: continued, checked, locked, and refused in words."""

import errno
import hashlib
import os
import re
import resource
import subprocess
import sys
import threading

import pytest
from weights_site import CONTENT, NAME, refusal, texts

from conformer_fast.checkpoints import download
from conformer_fast.checkpoints.download import fetch
from conformer_fast.errors import DownloadError
from conformer_fast.model.config import VARIANTS


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
    message = refusal()
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
    message = refusal()
    assert f"its sha256 begins with {found}, not {expected}; it was removed" in message
    assert not target.exists()
    assert not list(target.parent.glob("*.part"))
    assert site.ranges == [None]


def test_a_missing_file_is_not_tried_again(site):
    site.statuses = [404]
    message = refusal()
    assert f"{site.url}/{NAME}: 404" in message
    assert site.ranges == [None]


def test_a_busy_server_is_tried_again(site):
    site.statuses = [503, 429]
    with pytest.warns(UserWarning, match="try 2 of 5") as told:
        assert fetch("tiny-p16").read_bytes() == CONTENT
    assert texts(told) == [
        f"{site.url}: 503 Service Unavailable; try 2 of 5 in 0 s",
        f"{site.url}: 429 Too Many Requests; try 3 of 5 in 0 s",
    ]
    assert site.ranges == [None] * 3


def test_offline_requests_nothing_and_says_where_to_put_the_file(site, target, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    message = refusal()
    assert message.startswith("CONFORMER_FAST_OFFLINE is set")
    assert f"download {site.url}/{NAME} elsewhere and put it at {target}" in message
    target.write_bytes(CONTENT)
    assert fetch("tiny-p16") == target
    assert site.ranges == []


def test_no_server_says_where_to_put_the_file(site, target, monkeypatch):
    site.server.server_close()
    message = refusal()
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
    message = refusal()
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
    assert "its sha256 begins with" in refusal()


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
    assert "its sha256 begins with" in refusal()


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
        assert "its sha256 begins with" in refusal()
    else:
        assert f"{path} is in the way of a download and no plain file; remove it" in refusal()
        assert site.ranges == []
    assert precious.read_bytes() == CONTENT[:1000] if kind == "link to a file" else not precious.exists()
    assert path.is_fifo() or path.is_dir() or path.is_symlink()


def test_a_full_disk_is_named_and_the_download_continued(site, target):
    """As where a file may not grow beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = refusal()
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
    message = refusal()
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


def test_the_lock_of_one_killed_at_the_very_end_is_removed(site, part, target):
    target.write_bytes(CONTENT)
    lock = target.with_name(f"{NAME}.lock")
    lock.write_text("1")
    assert fetch("tiny-p16") == target
    assert not lock.exists()


def test_nothing_is_printed_where_stderr_is_no_terminal(site, capfd):
    fetch("tiny-p16")
    assert capfd.readouterr() == ("", "")


def test_unpublished_variants_are_named():
    with pytest.raises(DownloadError, match="no published weights for 'digits'; there are weights for tiny-p16"):
        fetch("digits")


def test_every_variant_has_a_published_file():
    assert download.FILES.keys() == VARIANTS.keys()
    for variant, name in download.FILES.items():
        assert name.startswith(f"conformer-{variant}_")
        assert re.search(r"-[0-9a-f]{8}\.pth$", name)
