"""Where published weights are downloaded from, and what they must be, as the environment says it."""

from __future__ import annotations

import base64
import os
import re
import urllib.request
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import DownloadError

BASE_URL = "https://download.openmmlab.com/mmclassification/v0/conformer"
MIRROR = "CONFORMER_FAST_WEIGHTS_URL"
SHA256 = "CONFORMER_FAST_WEIGHTS_SHA256"
OFFLINE = "CONFORMER_FAST_OFFLINE"
AGENT = "conformer-fast"  # as servers are told


@dataclass(frozen=True)
class Mirror:
    """url: of the folder, without the user and password that the address may have; these are sent, and never printed"""

    url: str
    _authorization: str | None

    def request(self, name: str) -> urllib.request.Request:
        """For a file. Where the server redirects to, user and password are not sent."""
        request = urllib.request.Request(f"{self.url}/{name}", headers={"User-Agent": AGENT})
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)
        return request


def is_offline() -> bool:
    """$CONFORMER_FAST_OFFLINE: whether nothing may be requested."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def mirror() -> Mirror:
    """$CONFORMER_FAST_WEIGHTS_URL, else the publisher's folder. Raises DownloadError for what is no such address."""
    address = os.environ.get(MIRROR) or BASE_URL
    shown = address.rpartition("@")[2]
    if not address.startswith(("https://", "http://")):
        raise DownloadError(f"{MIRROR} must begin with https:// or http://, got {shown!r}")
    parts = _parts(address)
    if parts is None:
        raise DownloadError(
            f"{MIRROR} must be the address of a folder, such as https://host/folder, in ASCII and without '?' and '#', "
            f"got {shown!r}"
        )
    check_scheme(address)
    host = parts.netloc.rpartition("@")[2]
    return Mirror(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", _basic(parts))


def check_scheme(address: str) -> None:
    """Raises DownloadError for an address from which anybody on the way could send another file, unless the whole hash
    of the right one is known; and for one of neither http nor https."""
    scheme = address.partition(":")[0].lower()
    if scheme == "https" or (scheme == "http" and whole_hashes()):
        return
    raise DownloadError(
        f"weights are not taken over {scheme}://, where others can change them: the names of the files hold only 8 of "
        f"their hash's 64 digits; use an https:// mirror, or set {SHA256} to the file's whole sha256 for an http:// one"
    )


def whole_hashes() -> set[str]:
    """$CONFORMER_FAST_WEIGHTS_SHA256: of which the weights must be one; none if it is not set.

    Raises DownloadError unless it has whole hashes, separated by commas or spaces.
    """
    hashes = os.environ.get(SHA256, "").lower().replace(",", " ").split()
    for found in hashes:
        if not re.fullmatch(r"[0-9a-f]{64}", found):
            raise DownloadError(f"{SHA256} must be sha256 hashes of 64 hexadecimal digits, got {found!r}")
    return set(hashes)


def _parts(address: str) -> SplitResult | None:
    """None unless it is the address of a folder, to which a file's name can be added."""
    try:
        parts = urlsplit(address)
        usable = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, or brackets around what is no IPv6
        return None
    return parts if usable and re.fullmatch("[!-~]+", address) and not {"?", "#"} & set(address) else None


def _basic(parts: SplitResult) -> str | None:
    """User and password as HTTP sends them."""
    if parts.username is None:
        return None
    text = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(text.encode()).decode()}"
