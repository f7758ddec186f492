"""Pictures at addresses: what a server may do, and what none may."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from datetime import UTC, datetime, timedelta

import picture_site
import pytest
from data_samples import picture
from picture_site import PUBLIC, names_of, site

from conformer_fast.datasets import addresses
from conformer_fast.datasets.addresses import MOST_BYTES, REDIRECTS, SECONDS, fetch, is_address, is_local
from conformer_fast.errors import ImageError

PICTURE = picture(7)
METADATA = "169.254.169.254"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.delenv("CONFORMER_FAST_OFFLINE", raising=False)


@pytest.fixture
def server():
    with site() as found:
        found.sends("/a.png", PICTURE)
        yield found


def refusal(address: str) -> str:
    with pytest.raises(ImageError) as caught:
        fetch(address)
    message = str(caught.value)
    assert message.count(address) == 1
    assert message.isprintable()
    return message


@pytest.fixture
def soon(monkeypatch):
    """Half a second in all. A function that says whether what was done inside took about so long."""
    monkeypatch.setattr(addresses, "SECONDS", 0.5)
    start = time.monotonic()
    return lambda: 0.4 < time.monotonic() - start < 5


def test_an_address():
    for name in ("http://a/b.png", "https://a", "HTTPS://A/B.PNG", "http://"):
        assert is_address(name)
    for name in ("a.png", "http:/a/b.png", "-", "ftp://a/b.png", "./http://a", "file:///etc/passwd", " http://a"):
        assert not is_address(name)


def test_a_picture(server):
    """Of this machine too, as the user said so."""
    server.sends("/a%20b/?c=d&e", PICTURE)
    assert fetch(f"{server.url}/a.png") == PICTURE
    assert fetch(f"{server.url}/a%20b/?c=d&e#there") == PICTURE
    assert fetch(f"http://localhost:{server.port}/a.png") == PICTURE
    (_, headers), *_ = server.asked
    assert headers == {
        "Host": f"127.0.0.1:{server.port}",
        "User-Agent": "conformer-fast",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


def test_a_picture_in_chunks_and_one_until_the_end(server):
    def in_chunks(request):
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for part in (PICTURE[:9], PICTURE[9:], b""):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    server.answers["/chunks"] = in_chunks
    server.sends("/end", PICTURE, Content_Length=None)
    assert fetch(f"{server.url}/chunks") == fetch(f"{server.url}/end") == PICTURE


def test_redirects(server):
    """Relative ones too, and by every status."""
    for number, status in enumerate((301, 302, 303, 307, 308), start=1):
        server.redirects(f"/{number}", f"/{number - 1}", status)
    server.redirects("/0", f"{server.url}/a.png")
    assert fetch(f"{server.url}/4") == PICTURE
    assert f"redirected over {REDIRECTS} times; download the picture" in refusal(f"{server.url}/5")
    server.redirects("/loop", "loop")
    assert "redirected over" in refusal(f"{server.url}/loop")
    server.sends("/nowhere", b"", 302)
    assert "redirects to nowhere" in refusal(f"{server.url}/nowhere")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", METADATA, "10.0.0.1", "192.168.1.1", "0.0.0.0"),
        *("[::]", "2130706433", "0x7f.1", "127.1", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]", "224.0.0.1"),
        "inside.test",
    ],
)
def test_no_redirect_to_a_local_address(server, monkeypatch, host):
    """However it is written, and also by a name; of a server that is not local itself."""
    connected = names_of(monkeypatch, server, cats_test=PUBLIC, inside_test="10.1.2.3")
    server.redirects("/cat.png", f"http://{host}:{server.port}/a.png")
    message = refusal("http://cats.test/cat.png")
    assert f"redirected to http://{host}:{server.port}, which is this machine or in its own network" in message
    assert connected == [PUBLIC]
    assert [path for path, _ in server.asked] == ["/cat.png"]


def test_an_ipv6_address_without_a_port(server, monkeypatch):
    """Its last group is none."""
    monkeypatch.setattr(picture_site, "PUBLIC", "2606:4700::abcd")
    connected = names_of(monkeypatch, server)
    assert fetch("http://[2606:4700::abcd]/a.png") == PICTURE
    assert connected == ["2606:4700::abcd"]
    assert server.asked[-1][1]["Host"] == "[2606:4700::abcd]"


def test_a_redirect_far_away_and_then_back_is_refused(server, monkeypatch):
    connected = names_of(monkeypatch, server, cats_test=PUBLIC, dogs_test=PUBLIC)
    server.redirects("/cat.png", "http://dogs.test/dog.png")
    server.redirects("/dog.png", server.url)
    assert "which is this machine" in refusal("http://cats.test/cat.png")
    assert connected == [PUBLIC, PUBLIC]
    server.sends("/dog.png", PICTURE)
    assert fetch("http://cats.test/cat.png") == PICTURE


def test_from_a_local_address_to_a_local_one(server, monkeypatch):
    names_of(monkeypatch, server, inside_test="127.0.0.1")
    server.redirects("/b.png", f"http://inside.test:{server.port}/a.png")
    assert fetch(f"http://localhost:{server.port}/b.png") == PICTURE


def test_a_name_of_both_kinds_is_not_local(server, monkeypatch):
    """So that whoever answers for a name cannot let himself in."""
    resolve = socket.getaddrinfo
    names_of(monkeypatch, server)
    both = [*resolve(PUBLIC, 80, type=socket.SOCK_STREAM), *resolve("127.0.0.1", 80, type=socket.SOCK_STREAM)]
    known = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **b: both if host == "x.test" else known(host, *a, **b))
    server.redirects("/cat.png", server.url)
    assert "which is this machine" in refusal("http://x.test/cat.png")
    server.redirects("/dog.png", "http://x.test/cat.png")
    names_of(monkeypatch, server, cats_test=PUBLIC)
    assert "redirected to http://x.test, which is this machine" in refusal("http://cats.test/dog.png")


def test_a_name_that_changes_what_it_means(server, monkeypatch):
    """It is resolved once, and connected to what was checked; a redirect to it resolves and checks it anew."""
    connected = names_of(monkeypatch, server, cats_test=[PUBLIC, "127.0.0.1"])
    assert fetch("http://cats.test/a.png") == PICTURE
    assert connected == [PUBLIC]
    connected = names_of(monkeypatch, server, cats_test=[PUBLIC, "127.0.0.1"])
    server.redirects("/cat.png", f"http://cats.test:{server.port}/a.png")
    assert "which is this machine" in refusal("http://cats.test/cat.png")
    assert connected == [PUBLIC]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://cats.test/", "gopher://x", "http://a b/"])
def test_no_redirect_to_what_is_no_address(server, target):
    server.redirects("/cat.png", target)
    assert "what it is redirected to is no address of http or https" in refusal(f"{server.url}/cat.png")


@pytest.mark.parametrize(
    "address",
    [
        *("http://", "http:///a.png", "http://:80/", "http://a:port/", "http://a:0/", "http://[x]/", "http://a:99999/"),
        *("https://k\u00e4se.test/a.png", "http://a/b c.png", "http://a/\x1b[2J", "http://a\n/"),
    ],
)
def test_what_is_no_address(address, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("resolved"))
    with pytest.raises(ImageError, match="it is no address of http or https in ASCII; write it as a browser") as caught:
        fetch(address)
    assert str(caught.value).isprintable()


def test_a_password_is_not_sent(server):
    message = refusal(f"http://me:secret@127.0.0.1:{server.port}/a.png")
    assert "has a user's name or password, which are not sent" in message
    assert server.asked == []


def test_nothing_is_requested_offline(server, monkeypatch):
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("resolved"))
    assert "CONFORMER_FAST_OFFLINE is set, and nothing is fetched; download" in refusal(f"{server.url}/a.png")


def test_what_is_not_there(server, monkeypatch):
    server.sends("/gone.png", b"no cat", 404)
    assert "the server says 404 Not Found; is the address right?" in refusal(f"{server.url}/gone.png")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "cannot be fetched (" in refusal(f"http://127.0.0.1:{closed.getsockname()[1]}/a.png")

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "cannot be fetched ([Errno -2] Name or service not known); download" in refusal("http://cats.test/a.png")


def test_a_proxy_is_not_asked(server, monkeypatch):
    """It would resolve the name itself, after the check."""
    with site() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert fetch(f"{server.url}/a.png") == PICTURE
        assert proxy.asked == []


def test_more_bytes_than_a_picture_has(server, monkeypatch):
    """By what the server says, before they are read, and by what it sends."""
    monkeypatch.setattr(addresses, "MOST_BYTES", 1000)
    server.sends("/says.png", PICTURE, Content_Length=10**15)
    assert "has 1,000,000,000,000,000 bytes, 1,000 are allowed" in refusal(f"{server.url}/says.png")
    server.sends("/large.png", b"x" * 1001)
    assert "has 1,001 bytes, 1,000 are allowed; download" in refusal(f"{server.url}/large.png")
    server.sends("/1000.png", b"x" * 1000)
    server.sends("/1000 and no length.png".replace(" ", "_"), b"x" * 1000, Content_Length=None)
    assert len(fetch(f"{server.url}/1000.png")) == len(fetch(f"{server.url}/1000_and_no_length.png")) == 1000


def test_an_endless_stream(server):
    sent = []

    def endless(request):
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(bytes(1 << 20))
            sent.append(1 << 20)

    server.answers["/a.png"] = endless
    assert f"has over {MOST_BYTES:,} bytes, the most that is allowed" in refusal(f"{server.url}/a.png")
    assert sum(sent) < 2 * MOST_BYTES


def test_a_bomb_is_not_unpacked(server):
    for encoding in ("gzip", "br", "deflate, gzip"):
        server.sends("/a.png", gzip.compress(bytes(1 << 20)), Content_Encoding=encoding)
        assert f"the server sends it compressed ({encoding}), which was not asked" in refusal(f"{server.url}/a.png")
    server.sends("/a.png", PICTURE, Content_Encoding="Identity")
    assert fetch(f"{server.url}/a.png") == PICTURE


def test_a_stream_that_ends_early(server):
    server.sends("/a.png", PICTURE[:-1], Content_Length=len(PICTURE))
    message = f"the connection ended after {len(PICTURE) - 1:,} of {len(PICTURE):,} bytes; try again"
    assert message in refusal(f"{server.url}/a.png")


def dripping(start: bytes):
    """Sends this, and then a byte now and then, for as long as nobody waits."""

    def drip(request):
        request.wfile.write(start)
        for _ in range(200):
            time.sleep(0.05)
            request.wfile.write(b"x")

    return drip


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"],
    ids=["status", "headers", "content", "content of known length"],
)
def test_a_dripping_server_holds_nobody(server, soon, start):
    server.answers["/a.png"] = dripping(start)
    assert "not there after 0 s; try again, or download" in refusal(f"{server.url}/a.png")
    assert soon()


def test_many_slow_redirects_hold_nobody(server, soon):
    def slow(request):
        time.sleep(0.3)
        server.sends("/x", b"", 302, Location="/a.png")
        server.answers["/x"](request)

    server.answers["/a.png"] = slow
    assert "not there after" in refusal(f"{server.url}/a.png")
    assert soon()


def test_a_server_that_says_nothing(soon):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("http", "https"):
            assert "not there after" in refusal(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/a.png")
    assert soon()


def test_what_is_no_http(server):
    def one(*parts):
        server.answers["/a.png"] = lambda request: [request.wfile.write(part) for part in parts]
        return refusal(f"{server.url}/a.png")

    assert "cannot be fetched" in one(b"SSH-2.0-OpenSSH\r\n")
    assert "cannot be fetched" in one(b"HTTP/1.1 200 OK\r\n", *[b"X: x\r\n"] * 999)
    assert "cannot be fetched" in one(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 99999, b"\r\n\r\n")
    assert "cannot be fetched" in one(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n")
    assert r"says 500 \x1b[2J" in one(b"HTTP/1.1 500 \x1b[2J\r\n\r\n")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Of cats.test, by itself, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cats.test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("cats.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = tmp_path_factory.mktemp("certificate") / "cats.pem"
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    file.write_bytes(made.public_bytes(pem) + secret)
    return file


def test_https_by_the_certificate_of_the_name(certificate, monkeypatch):
    """Though what is connected to is an IP address; the name is told to the server, and no other one will do."""
    with site(certificate) as server:
        server.sends("/a.png", PICTURE)
        names_of(monkeypatch, server, cats_test=PUBLIC, dogs_test=PUBLIC)
        assert "certificate verify failed" in refusal("https://cats.test/a.png")  # nobody vouches for it
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch("https://cats.test/a.png") == PICTURE
        assert server.asked[0][1]["Host"] == "cats.test"
        assert "Hostname mismatch" in refusal("https://dogs.test/a.png")
        assert "cannot be fetched" in refusal(f"http://127.0.0.1:{server.port}/a.png")


def test_no_redirect_from_https_to_http(server, certificate, monkeypatch):
    with site(certificate) as secure:
        names_of(monkeypatch, secure, cats_test=PUBLIC)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        secure.sends("/a.png", PICTURE)
        secure.redirects("/again.png", "https://cats.test/a.png")
        assert fetch("https://cats.test/again.png") == PICTURE
        secure.redirects("/cat.png", "http://cats.test/a.png")
        message = refusal("https://cats.test/cat.png")
        assert "redirected from https to http://cats.test, where others can read and change it; if you mean" in message
        assert [path for path, _ in secure.asked] == ["/again.png", "/a.png", "/cat.png"]
        server.redirects("/cat.png", "https://cats.test/a.png")
        assert fetch(f"{server.url}/cat.png") == PICTURE  # the other way it may lead


def test_a_slow_resolver_takes_of_the_same_time(server, monkeypatch, soon):
    """Though it is not interrupted."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: (time.sleep(0.6), resolve(*args, **more))[1])
    assert "not there after" in refusal(f"{server.url}/a.png")
    assert server.asked == []
    assert soon()


def test_a_dripping_server_of_https(certificate, monkeypatch, soon):
    with site(certificate) as server:
        names_of(monkeypatch, server, cats_test=PUBLIC)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server.answers["/a.png"] = dripping(b"HTTP/1.1 200 OK\r\n\r\n")
        assert "not there after" in refusal("https://cats.test/a.png")
    assert soon()


def test_another_place_of_the_same_name(server, monkeypatch):
    """The first that answers; one that does not leaves the next its share of the time."""
    resolve, connect, waited = socket.getaddrinfo, socket.create_connection, []
    places = [resolve(host, server.port, type=socket.SOCK_STREAM)[0] for host in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **b: places if host == "x.test" else resolve(host, *a))
    monkeypatch.setattr(socket, "create_connection", lambda to, timeout: waited.append(timeout) or connect(to, timeout))
    assert fetch(f"http://x.test:{server.port}/a.png") == PICTURE
    assert waited == [pytest.approx(SECONDS / 2, rel=0.1), pytest.approx(SECONDS, rel=0.1)]


def test_local_addresses():
    for ip in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert not is_local(ip), ip
    for ip in ("127.0.0.1", "10.0.0.1", METADATA, "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1"):
        assert is_local(ip), ip
    for ip in (
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "fec0::1",
        "ff02::1",
        "::127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
    ):
        assert is_local(ip), ip


def test_nothing_stays_open(server):
    """Neither a socket nor a thread, whatever became of it."""
    before = threading.active_count()
    server.sends("/gone.png", b"", 404)
    for _ in range(50):
        fetch(f"{server.url}/a.png")
        refusal(f"{server.url}/gone.png")
    time.sleep(0.2)  # the server's own end of a request
    assert threading.active_count() <= before + 1
