"""Who vouches for a bundle: a secret, or a key pair whose public key cannot sign."""

import hashlib
import json
import sys

import pytest
from manifest_samples import FILES, KEY, MANIFEST, read

from conformer_fast.bundles.folder import check_writable, write_bundle
from conformer_fast.bundles.signature import LEAST_BYTES
from conformer_fast.errors import ArgumentError, BundleError

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")


def private_pem(key, password: bytes | None = None) -> bytes:
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


OWNER, OTHER = (ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
PRIVATE, PUBLIC = private_pem(OWNER), public_pem(OWNER)


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle", MANIFEST, FILES, PRIVATE)


@pytest.mark.parametrize(
    "key", [PRIVATE, PUBLIC, b"\n" + PUBLIC, None], ids=["private", "public", "with a line", "none"]
)
def test_the_owners_keys_verify(key, folder):
    bundle = read(folder, key)
    assert bundle.signed
    assert {name: bundle.read(name) for name in bundle.manifest.files} == FILES


@pytest.mark.parametrize("key", [public_pem(OTHER), private_pem(OTHER), KEY], ids=["public", "private", "secret"])
def test_no_other_key_verifies(key, folder):
    with pytest.raises(BundleError, match="is not signed with this key; get the bundle from its owner"):
        read(folder, key)


def test_a_public_key_signs_nothing(folder, tmp_path):
    for refused in (
        lambda: write_bundle(tmp_path / "new", MANIFEST, FILES, PUBLIC),
        lambda: check_writable(folder, PUBLIC),
    ):
        with pytest.raises(ArgumentError, match="is signed with a private key, and this one is public"):
            refused()
    assert not (tmp_path / "new").exists()


def test_nor_is_it_taken_for_a_secret(tmp_path):
    """Everybody has it, and could sign with it."""
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES, KEY)
    with pytest.raises(BundleError, match="is not signed with this key"):
        read(folder, PUBLIC)


def rewritten(folder, change) -> None:
    """As somebody does who knows the format and no key."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["digest"]
    change(content)
    content["digest"] = hashlib.sha256((json.dumps(content, indent=1) + "\n").encode()).hexdigest()
    path.write_text(json.dumps(content, indent=1) + "\n")


FORGED = {
    "another entry": lambda content: content.update(rebuild="rm -r /"),
    "another signature": lambda content: content.update(ed25519="00" * 64),
    "a short one": lambda content: content.update(ed25519="00"),
    "no hex": lambda content: content.update(ed25519="\u00e9"),
    "no text": lambda content: content.update(ed25519=7),
    "a list": lambda content: content.update(ed25519=["00"]),
    "none, but a secret's": lambda content: (content.pop("ed25519"), content.update(hmac="00" * 32)),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_what_is_changed_is_not_signed(change, folder):
    rewritten(folder, change)
    with pytest.raises(BundleError, match="is not signed with this key"):
        read(folder, PUBLIC)


def test_a_signature_that_was_taken_away(folder):
    rewritten(folder, lambda content: content.pop("ed25519"))
    with pytest.raises(BundleError, match="is not signed, and a key was given"):
        read(folder, PUBLIC)
    assert not read(folder).signed


def test_a_signature_beside_another_proves_nothing(tmp_path):
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES, KEY)
    rewritten(folder, lambda content: content.update(ed25519="00" * 64))
    read(folder, KEY)  # this one is right
    with pytest.raises(BundleError, match="is not signed with this key"):
        read(folder, PUBLIC)


@pytest.mark.parametrize("signs", [True, False], ids=["to sign", "to verify"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"x" * (LEAST_BYTES - 1), "must have at least 16 bytes, got 15; make one with `openssl rand"),
        (PRIVATE[:60] + PRIVATE[-30:], "is no PEM file that can be read"),
        (b"-----BEGIN nothing", "is no PEM file that can be read"),
        (private_pem(OWNER, b"password"), "or it has a password"),
        (
            private_pem(ec.generate_private_key(ec.SECP256R1())),
            "must be Ed25519, got .*; make one with `openssl",
        ),
    ],
    ids=["short", "cut", "no key", "with a password", "another kind"],
)
def test_keys_that_are_refused(key, message, signs, tmp_path, folder):
    with pytest.raises(ArgumentError, match=message):
        write_bundle(tmp_path / "new", MANIFEST, FILES, key) if signs else read(folder, key)


def test_without_the_package_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(ArgumentError, match=r'needs the package cryptography .*pip install "conformer-fast\[sign\]"'):
        read(folder, PUBLIC)
    assert read(folder).signed  # damage is found without it
