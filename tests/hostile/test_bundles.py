"""Bundles: any byte that is changed is noticed, with or without a key; and manifests that were made to look right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lookalikes
import pytest
from attempts import Attempts, every
from bundle_samples import KEY, contents, fake_runtime, write_plan
from damage import NAMES, broken, broken_json, flipped
from hypothesis import strategies as st

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines.registry import format_of
from conformer_fast.errors import BackendError, BundleError, ConformerFastError
from conformer_fast.model.reference import Conformer

pytestmark = pytest.mark.slow

BUILT_ON = ("the engine was built on",)
WORDS = ('"int8"', '"none"', '"labels.txt"', '"model.plan"', '"manifest.json"', '"conv_logits"', '"sm86"', '"tensorrt"')


@pytest.fixture(scope="module")
def model(small_config) -> Conformer:
    return lookalikes.fill(Conformer(small_config)).eval()


@pytest.fixture(scope="module")
def sound(model, tmp_path_factory) -> dict[bool, dict[str, bytes]]:
    """The files of a bundle, by whether it is signed."""
    folder = tmp_path_factory.mktemp("sound")
    return {
        signed: contents(write_plan(folder / f"{signed}", model, key=KEY if signed else None))
        for signed in (False, True)
    }


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder, with these files alone."""
    if folder.exists():
        for path in list(folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def whole(folder: Path, key: bytes | None) -> dict[str, bytes]:
    """All that a bundle says and holds."""
    bundle = read_bundle(folder, format_of, key)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return {"": repr(bundle.manifest).encode(), "digest": bundle.digest.encode(), **files}


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_any_changed_byte(signed, sound, attempt: Attempts, tried):
    """Whatever is damaged in whichever file, it is an error, or the same bytes as before."""
    files = sound[signed]
    folder, key = attempt.folder / "bundle", KEY if signed else None
    expected = whole(put(folder, files), key)

    def one(damaged: tuple[str, bytes]) -> None:
        name, content = damaged
        put(folder, files | {name: content})

        def equal(found: dict[str, bytes]) -> bool:
            assert found == expected, "a damaged bundle was read"
            assert content == files[name]
            return True

        attempt.read(lambda: whole(folder, key), BundleError, folder, equal, locks=folder)

    others = b"".join(files.values())
    damaged = [st.tuples(st.just(name), broken(content, others)) for name, content in sorted(files.items())]
    manifest = files["manifest.json"]
    damaged.append(st.tuples(st.just("manifest.json"), flipped(manifest, range(len(manifest)))))
    one(("labels.txt", files["labels.txt"]))
    every(st.one_of(*damaged), 100, one)
    attempt.check()
    tried(f"bundles ({'signed' if signed else 'not signed'}): bytes changed", attempt.counts)


def sealed(text: str) -> bytes:
    """A manifest whose digest is right, if it can be."""
    try:
        content = json.loads(text)
        content.pop("digest", None)
        content["digest"] = hashlib.sha256((json.dumps(content, indent=1) + "\n").encode()).hexdigest()
        return (json.dumps(content, indent=1) + "\n").encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return text.encode(errors="surrogatepass")


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_manifests_with_a_right_digest(signed, sound, model, attempt: Attempts, tried):
    """Who changes a manifest can make its digest right, and then what it says is taken if it can be; with a key it is
    refused whatever it says. What is loaded has a name a class, and takes and gives what it says."""
    files = sound[signed]
    folder, key = attempt.folder / "bundle", KEY if signed else None
    manifest = json.loads(files["manifest.json"])
    right = files["manifest.json"]

    def one(text: str) -> None:
        changed = sealed(text)
        put(folder, files | {"manifest.json": changed})

        def equal(fast: cf.FastConformer) -> bool:
            assert not signed or changed == right, "what nobody signed was loaded"
            assert len(fast.labels) in (0, fast.config.num_classes)
            assert all(label.isprintable() for label in fast.labels)
            fast.recipe.check(fast.config)
            return changed == right

        with fake_runtime(model):
            attempt.read(
                lambda: cf.load(folder, key=key),
                (BundleError, BackendError),
                "",
                equal,
                ("the engine was built on",),
                locks=folder,
            )

    one(json.dumps(manifest))
    every(broken_json(manifest, WORDS), 80, one)
    attempt.check()
    tried(f"bundles ({'signed' if signed else 'not signed'}): manifests changed, digest right", attempt.counts)


def test_labels_with_a_right_hash(sound, model, attempt: Attempts, tried):
    files = sound[False]
    folder = attempt.folder / "bundle"
    manifest = json.loads(files["manifest.json"])

    def one(labels: bytes) -> None:
        manifest["files"]["labels.txt"] = {"sha256": hashlib.sha256(labels).hexdigest(), "bytes": len(labels)}
        put(folder, files | {"labels.txt": labels, "manifest.json": sealed(json.dumps(manifest))})

        def equal(fast: cf.FastConformer) -> bool:
            assert len(fast.labels) == fast.config.num_classes
            assert all(label.splitlines() == [label] for label in fast.labels)
            return labels == files["labels.txt"]

        with fake_runtime(model):
            attempt.read(lambda: cf.load(folder), BundleError, folder, equal, locks=folder)

    names = st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), min_size=7, max_size=7)
    lines = names.map(lambda lines: "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass"))
    one(files["labels.txt"])
    every(st.one_of(broken(files["labels.txt"]), lines), 50, one)
    attempt.check()
    tried("bundles (not signed): names of classes changed, hash right", attempt.counts)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link(path: Path) -> None:
    """To a file with the right content."""
    path.symlink_to(path.parent.parent / "elsewhere")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _nothing(path: Path) -> None:
    pass


def _huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


STRANGE: tuple[Callable[[Path], None], ...] = (_pipe, _device, _link, _loop, _nothing, _huge, Path.mkdir)


def test_files_that_are_none(sound, attempt: Attempts, tried):
    folder = attempt.folder / "bundle"
    files = sound[False]
    expected = whole(put(folder, files), None)

    def one(strange: tuple[str, Callable[[Path], None]]) -> None:
        name, make = strange
        put(folder, files)
        (folder.parent / "elsewhere").write_bytes(files.get(name, b""))
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

        def equal(found: dict[str, bytes]) -> bool:
            assert name not in files, "a link was followed"
            return found == expected

        attempt.read(lambda: whole(folder, None), BundleError, folder, equal, locks=folder)

    names = st.sampled_from([*sorted(files), "runtime.cache", "other", ".model.plan.0123456789abcdef"])
    every(st.tuples(names, st.sampled_from(STRANGE)), 60, one)
    attempt.check()
    tried("bundles: pipes, devices, links and folders for files", attempt.counts)


def test_keys(sound, attempt: Attempts, tried):
    """No other key than the one that it was signed with."""
    folder = put(attempt.folder / "bundle", sound[True])

    def one(key: bytes) -> None:
        def equal(found: object) -> bool:
            assert key.rstrip(b"\0") == KEY  # HMAC itself puts zeros behind a short key
            return True

        attempt.read(lambda: read_bundle(folder, format_of, key), ConformerFastError, "", equal, locks=folder)

    one(KEY)
    every(st.one_of(broken(KEY), st.binary(max_size=64)), 60, one)
    attempt.check()
    tried("bundles (signed): other keys", attempt.counts)
