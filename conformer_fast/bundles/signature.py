"""Who vouches for a bundle: whoever has a secret (HMAC-SHA256), or the owner of a key pair (Ed25519).

A key is bytes. Those of a PEM file are a key pair's: the private key signs, the public one only verifies, so who checks
bundles cannot make them. Any other bytes are a secret, and everybody who can verify with it can sign with it too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LEAST_BYTES = 16  # of a secret
ENTRIES = "hmac", "ed25519"  # of a manifest; the second is there only where a key pair has signed
PEM = b"-----BEGIN "
PURPOSE = b"conformer_fast bundle\0"  # so that no other thing that the owner signs is one


def check_key(key: bytes | None, *, signs: bool) -> None:
    """Raises ArgumentError, saying what to give, unless `key` can sign, or verify."""
    if key is None:
        return
    if not isinstance(key, bytes):
        raise ArgumentTypeError(f"a bundle's key must be bytes, got {type(key).__name__}")
    if is_pair(key):
        _private(key) if signs else _public(key)
    elif len(key) < LEAST_BYTES:
        raise ArgumentError(
            f"a bundle's key must have at least {LEAST_BYTES} bytes, got {len(key)}; make one with "
            f"`openssl rand -out key 32`, or give None to do without"
        )


def signed(message: bytes, key: bytes | None) -> dict[str, str | None]:
    """The entries for a manifest that is `message`. The key has been checked."""
    if key is None:
        return {"hmac": None}
    if is_pair(key):
        return {"hmac": None, "ed25519": _private(key).sign(PURPOSE + message).hex()}
    return {"hmac": _hmac(message, key)}


def is_signed_by(key: bytes, message: bytes, entries: Mapping[str, Any]) -> bool:
    """Whether the entries are those that this key, or the private one that belongs to it, has made of the message."""
    if not is_pair(key):
        return hmac.compare_digest(_hmac(message, key).encode(), str(entries.get("hmac")).encode(errors="replace"))
    from cryptography.exceptions import InvalidSignature

    try:
        _public(key).verify(bytes.fromhex(entries["ed25519"]), PURPOSE + message)
    except (InvalidSignature, KeyError, ValueError, TypeError):
        return False
    return True


def is_pair(key: bytes) -> bool:
    """Whether these bytes are one of a key pair."""
    return key.lstrip().startswith(PEM)


def _hmac(message: bytes, key: bytes) -> str:
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _private(key: bytes) -> Ed25519PrivateKey:
    loaded = _loaded(key)
    if not hasattr(loaded, "sign"):
        raise ArgumentError("a bundle is signed with a private key, and this one is public; it verifies only")
    return loaded


def _public(key: bytes) -> Ed25519PublicKey:
    loaded = _loaded(key)
    return loaded.public_key() if hasattr(loaded, "sign") else loaded


def _loaded(key: bytes) -> Any:
    """The Ed25519 key, private or public, in a PEM file's bytes."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ArgumentError(
            f'a key pair needs the package cryptography ({error}): pip install "conformer-fast[sign]"'
        ) from error
    loaded: Any
    try:
        if b"PRIVATE KEY-----" in key:
            loaded = serialization.load_pem_private_key(key, password=None)
        else:
            loaded = serialization.load_pem_public_key(key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ArgumentError(f"the key is no PEM file that can be read, or it has a password: {error}") from error
    if not isinstance(loaded, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        raise ArgumentError(
            f"a bundle's key pair must be Ed25519, got {type(loaded).__name__}; make one with "
            f"`openssl genpkey -algorithm ed25519 -out private.pem`"
        )
    return loaded
