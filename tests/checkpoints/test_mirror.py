"""Where weights are downloaded from: addresses, redirections, passwords, hashes, and servers that are not there."""

import base64
import errno
import hashlib
import io
import socket
import ssl
import time
import urllib.request
import urllib.response
import warnings

import pytest
from weights_site import CONTENT, NAME, refusal, texts

from conformer_fast.checkpoints import download
from conformer_fast.checkpoints.download import fetch


def test_only_http_is_spoken(site, monkeypatch, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", tmp_path.as_uri())
    assert "must begin with https:// or http://" in refusal()


@pytest.mark.parametrize(
    "address",
    [
        *("https://exämple.org/weights", "https://[nonsense]/weights", "https://[::1/weights", "https://host:port/"),
        *("https:///weights", "https://host/a b", "https://host/?token=1", "https://host/#a", "https://host:99999/"),
    ],
)
def test_what_is_no_address_is_refused(site, monkeypatch, address):
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", address)
    assert "CONFORMER_FAST_WEIGHTS_URL must be the address of a folder" in refusal()


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
    message = refusal()
    assert message.startswith("https://host.test/weights cannot be reached (")
    assert str(error) in message
    assert "is CONFORMER_FAST_WEIGHTS_URL right?" in message
    assert asked == ["host.test"]
    monkeypatch.delenv("CONFORMER_FAST_WEIGHTS_URL")
    assert "); is there a network? Else download " in refusal()


@pytest.fixture(params=["drops packets", "says nothing"])
def silent(request, site, monkeypatch):
    """The port of a server that is there, and never heard of."""
    server, others = socket.create_server(("127.0.0.1", 0), backlog=0), []
    if request.param == "drops packets":
        for _ in range(4):  # the queue is full after the first or second; the others wait for ever
            others.append(socket.socket())
            others[-1].setblocking(False)
            others[-1].connect_ex(server.getsockname())
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", f"http://127.0.0.1:{server.getsockname()[1]}/weights")
    yield server.getsockname()[1]
    for each in (server, *others):
        each.close()


def test_a_server_that_does_not_answer_is_told_of_and_given_up_soon(silent):
    url = f"http://127.0.0.1:{silent}/weights"
    with pytest.warns(UserWarning, match="; try 2 of 5 in 0 s") as told:
        message = refusal()
    waited, again, waited_again = texts(told)
    assert waited == f"{url} has not answered yet; try 1 of 5"
    assert again.startswith(f"{url}: ")
    assert "timed out" in again
    assert waited_again == f"{url} has not answered yet; try 2 of 5"
    assert message.startswith(f"{url} cannot be reached (")
    assert "timed out" in message
    assert ", tried 2 times); is CONFORMER_FAST_WEIGHTS_URL right? Else download " in message


def test_nobody_is_told_of_a_server_that_has_answered(site, recwarn):
    """Though its content takes longer than PATIENCE, which is the usual one here: a busy machine has time to answer."""
    site.pause = 0.12  # after each of the pieces of its answer
    start = time.monotonic()
    fetch("tiny-p16")
    assert time.monotonic() - start > download.PATIENCE
    assert not texts(recwarn)


def test_whoever_waits_is_told_within_two_seconds():
    assert download.PATIENCE < 2


def test_a_slow_server_is_told_of_and_waited_for(site, target, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    site.before = 0.6
    with pytest.warns(UserWarning, match="has not answered yet; try 1 of 5") as told:
        assert fetch("tiny-p16") == target
    assert len(texts(told)) == 1
    assert site.ranges == [None]


@pytest.fixture
def slow(site, monkeypatch):
    """A server that takes long enough for its user to be told."""
    monkeypatch.setattr(download, "PATIENCE", 0.1)
    site.before = 0.6


def test_each_slow_download_is_told_of(slow, target):
    """Also where Python shows the same warning of the same place only once, as it does unless told otherwise."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(2):
            fetch("tiny-p16")
            target.unlink()
    assert [text.partition(" has not ")[2] for text in texts(told)] == ["answered yet; try 1 of 5"] * 2
    assert {warning.filename for warning in told if warning.category is UserWarning} == {download.__file__}


def test_a_slow_server_where_warnings_are_errors(slow, target):
    """They are its caller's, not another thread's, of which nobody hears."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="has not answered yet; try 1 of 5"):
            fetch("tiny-p16")
    assert not target.exists()


@pytest.mark.parametrize("address", ["http://[nonsense]/a", "http://127.0.0.1:port/a"])
def test_a_redirection_to_no_address_costs_no_second_attempt(site, address):
    site.redirects = [address]
    assert f"{site.url} cannot be reached" in refusal()
    assert site.ranges == [None]


def test_a_server_that_is_not_there_costs_no_second_attempt(site, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("it was tried again"))
    site.server.shutdown()  # else it may still take the first connection
    site.server.server_close()
    assert f"{site.url} cannot be reached" in refusal()


@pytest.mark.parametrize("how", ["a mirror", "a redirection"])
def test_http_needs_a_whole_hash(site, target, monkeypatch, how):
    """Only 8 digits are in the names, which another file can be made to have."""
    monkeypatch.delenv("CONFORMER_FAST_WEIGHTS_SHA256")
    if how == "a redirection":
        answer = urllib.request.urlopen
        monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: answer(site.url + "/" + NAME))
        monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", "https://127.0.0.1/weights")
    message = refusal()
    assert "weights are not taken over http://" in message
    assert "CONFORMER_FAST_WEIGHTS_SHA256" in message
    assert site.ranges == ([] if how == "a mirror" else [None])
    assert not target.exists()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", f"{'0' * 64}, {hashlib.sha256(CONTENT).hexdigest().upper()}")
    assert fetch("tiny-p16").read_bytes() == CONTENT


def test_the_whole_hash_decides_where_it_is_known(site, part, target, monkeypatch):
    found = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", found[:-1] + ("0" if found[-1] != "0" else "1"))
    assert f"its sha256, {found}, is none of CONFORMER_FAST_WEIGHTS_SHA256; it was removed" in refusal()
    assert not part.exists()
    target.write_bytes(CONTENT)  # also of a file that was put there
    assert f"its sha256, {found}, is none of CONFORMER_FAST_WEIGHTS_SHA256; remove it" in refusal()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_SHA256", found[:8])
    target.unlink()
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", "https://host.test/weights")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was requested first"))
    assert f"must be sha256 hashes of 64 hexadecimal digits, got '{found[:8]}'" in refusal()
    monkeypatch.delenv("CONFORMER_FAST_WEIGHTS_SHA256")
    target.write_bytes(CONTENT)
    assert fetch("tiny-p16") == target


def test_only_http_is_redirected_to(site, monkeypatch):
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda *_, **__: urllib.response.addinfourl(io.BytesIO(), {}, "ftp://host/a")
    )
    assert "weights are not taken over ftp://" in refusal()


def test_user_and_password_are_sent_and_never_printed(site, target, monkeypatch, capfd):
    address = site.url.replace("://", "://me:se%20cret@")
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", address)
    site.redirects = [f"{site.url}/{NAME}"]
    assert fetch("tiny-p16").read_bytes() == CONTENT
    assert site.authorizations == [f"Basic {base64.b64encode(b'me:se cret').decode()}", None]
    target.unlink()
    messages = []
    site.statuses = [404, *[503] * download.ATTEMPTS]
    messages += [refusal(), refusal()]
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    messages.append(refusal())
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE")
    for wrong in ("ftp://me:se%20cret@host/", "https://me:se%20cret@host:port/", "me:se%20cret@host"):
        monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", wrong)
        messages.append(refusal())
    monkeypatch.setenv("CONFORMER_FAST_WEIGHTS_URL", address)
    site.server.shutdown()
    site.server.server_close()
    messages.append(refusal())
    assert len(set(messages)) == 7
    assert not [text for text in (*messages, *capfd.readouterr()) if "cret" in text or "me:" in text]
