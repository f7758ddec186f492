"""Pictures at http and https addresses: small, soon, and from where the user said.

A server is not trusted. It may send too much, send it slowly, or redirect to what only this machine reaches. So a name
is resolved once, what it resolves to is checked, and that is connected to: a second answer of the name server changes
nothing. For the same reason no proxy is used, which would resolve the name itself.

It is our own, over http.client, because urllib and requests resolve the name again behind any check, and limit neither
the bytes nor the time in all. The download of weights (checkpoints/download.py) has other needs: it goes on where it
was cut, and its mirror is trusted.
"""

from __future__ import annotations

import io
import re
import socket
import ssl
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from time import monotonic
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from ..checkpoints.mirror import AGENT, OFFLINE, is_offline
from ..errors import ImageError, shown

MOST_BYTES = 32 << 20  # of a picture
SECONDS = 20.0  # of a picture, with all redirects
REDIRECTS = 5
CHUNK = 1 << 18
STATUSES = (301, 302, 303, 307, 308)  # that redirect
SCHEMES = {"http": 80, "https": 443}
BEHIND = IPv6Network("64:ff9b::/96")  # IPv4 addresses as networks without IPv4 write them
BY_HAND = "download the picture yourself and name the file"


def is_address(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def fetch(address: str) -> bytes:
    """The bytes at an address, as the server sends them.

    An address may lead to this machine, or to one of its own network. A redirect may only if the address did. None
    leads from https to http.

    Raises ImageError, which names the address, when it is none, nothing is there, it has over MOST_BYTES, takes over
    SECONDS, is sent compressed, or is redirected too often or to where it may not be; and with
    CONFORMER_FAST_OFFLINE=1. The system's resolver of names is not interrupted: its time counts, but only its answer
    ends it.
    """
    try:
        return _fetched(address)
    except TimeoutError as error:
        raise ImageError(f"{shown(address)}: not there after {SECONDS:.0f} s; try again, or {BY_HAND}") from error
    except ImageError as error:
        raise ImageError(f"{shown(address)}: {error}") from error
    except (OSError, HTTPException, ValueError) as error:  # no such name, another's certificate, no HTTP
        raise ImageError(f"{shown(address)}: cannot be fetched ({shown(error)}); {BY_HAND}") from error


def is_local(ip: str) -> bool:
    """Whether it is this machine's or of a network of its own, or no single machine's."""
    found: IPv4Address | IPv6Address = ip_address(ip.partition("%")[0])  # without the network card
    if isinstance(found, IPv6Address):
        if found.is_site_local:  # which Python calls global
            return True
        inner = found.ipv4_mapped or found.sixtofour
        found = IPv4Address(int(found) & 0xFFFFFFFF) if found in BEHIND else inner or found
    return not found.is_global or found.is_multicast or found.is_reserved


def _fetched(address: str) -> bytes:
    if is_offline():
        raise ImageError(f"{OFFLINE} is set, and nothing is fetched; {BY_HAND}")
    until = monotonic() + SECONDS
    parts, may_be_local = _parts(address, "it"), True
    for number in range(REDIRECTS + 1):
        places = _places(parts)
        local = [is_local(ip) for ip, _ in places]
        if not number:
            may_be_local = all(local)
        elif any(local) and not may_be_local:
            raise ImageError(
                f"redirected to {_site(parts)}, which is this machine or in its own network; if you mean that, name "
                f"the address there"
            )
        with _connected(places, until) as opened, closing(_secured(opened, parts, until)) as connection:
            response = _asked(connection, parts, until)
            if response.status not in STATUSES:
                return _content(response)
            target = response.headers.get("Location")
        if target is None:
            raise ImageError(f"{_site(parts)} redirects to nowhere; {BY_HAND}")
        before, parts = parts, _parts(urljoin(parts.geturl(), target), "what it is redirected to")
        if before.scheme == "https" and parts.scheme == "http":
            raise ImageError(
                f"redirected from https to {_site(parts)}, where others can read and change it; if you mean that, name "
                f"the address there"
            )
    raise ImageError(f"redirected over {REDIRECTS} times; {BY_HAND}")


def _parts(address: str, what: str) -> SplitResult:
    """Raises ImageError for what is no address, or has a password, which would be in every message."""
    try:
        parts = urlsplit(address)
        usable = bool(parts.hostname) and parts.port != 0 and re.fullmatch("[!-~]+", address)
    except ValueError:  # a port that is no number, or brackets around what is no IPv6
        usable = False
    if not usable or parts.scheme not in SCHEMES:
        raise ImageError(f"{what} is no address of http or https in ASCII; write it as a browser copies it")
    if parts.username is not None:
        raise ImageError(f"{what} has a user's name or password, which are not sent; {BY_HAND}")
    return parts


def _site(parts: SplitResult) -> str:
    return shown(f"{parts.scheme}://{parts.netloc}")


def _places(parts: SplitResult) -> list[tuple[str, int]]:
    """What its host resolves to: IP address and port."""
    port = parts.port or SCHEMES[parts.scheme]
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    return [(str(place[0]), port) for *_, place in found]


def _connected(places: list[tuple[str, int]], until: float) -> socket.socket:
    """To the first that answers."""
    for number, place in enumerate(places, start=1):
        try:
            return socket.create_connection(place, timeout=_left(until) / (len(places) - number + 1))
        except OSError:
            if number == len(places):
                raise
    raise OSError("its host has no IP address")


def _secured(opened: socket.socket, parts: SplitResult, until: float) -> socket.socket:
    """The same, for https encrypted, by the certificate of the host that was named."""
    opened.settimeout(_left(until))
    if parts.scheme == "http":
        return opened
    return ssl.create_default_context().wrap_socket(opened, server_hostname=parts.hostname)


def _asked(connection: socket.socket, parts: SplitResult, until: float) -> HTTPResponse:
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    http = kind(str(parts.hostname), parts.port or SCHEMES[parts.scheme])  # or an IPv6 address's end is taken for one
    socket_of_http: Any = _Timed(connection, until)
    http.sock = socket_of_http
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"User-Agent": AGENT, "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
    http.request("GET", target, headers=headers)
    return http.getresponse()


def _content(response: HTTPResponse) -> bytes:
    if response.status != 200:
        raise ImageError(f"the server says {response.status} {shown(response.reason)}; is the address right?")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise ImageError(f"the server sends it compressed ({shown(encoding)}), which was not asked for; {BY_HAND}")
    expected, content = response.length, bytearray()
    if expected is not None and expected > MOST_BYTES:
        raise ImageError(f"has {expected:,} bytes, {MOST_BYTES:,} are allowed; {BY_HAND}")
    while chunk := response.read1(CHUNK):
        content += chunk
        if len(content) > MOST_BYTES:
            raise ImageError(f"has over {MOST_BYTES:,} bytes, the most that is allowed; {BY_HAND}")
    if expected is not None and len(content) < expected:
        raise ImageError(f"the connection ended after {len(content):,} of {expected:,} bytes; try again")
    return bytes(content)


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Timed:
    """A connected socket, as http.client uses one. It is for use until a point in time, however little arrives when."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection, self._until = connection, until

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(_left(self._until))
        self._connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._connection, self._until))

    def close(self) -> None:
        """Whoever connected it closes it: http.client does so before it has read."""


class _Reader(io.RawIOBase):
    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection, self._until = connection, until

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        self._connection.settimeout(_left(self._until))
        return self._connection.recv_into(memory)
