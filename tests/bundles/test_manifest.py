"""A bundle's folder: written whole or not at all, and no byte of it changes unnoticed."""

import hashlib
import json
import os
import pickle
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from manifest_samples import FILES, KEY, MANIFEST, read

from conformer_fast import ConformerFeatures, ConformerOutput
from conformer_fast.bundles.folder import check_writable, read_bundle, write_bundle
from conformer_fast.bundles.manifest import Format
from conformer_fast.errors import BundleError, EngineMismatchError


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small bundle, unsigned."""
    return write_bundle(tmp_path / "bundle", MANIFEST, FILES)


def dump(content) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def edit(folder: Path, change) -> None:
    """Changes the manifest as somebody would who knows the digest but no key."""
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["digest"]
    content = change(content) or content
    content["digest"] = hashlib.sha256(dump(content)).hexdigest()
    (folder / "manifest.json").write_bytes(dump(content))


@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_what_is_written_is_read(key, tmp_path):
    folder = write_bundle(tmp_path / "deep" / "bundle", MANIFEST, FILES, key)
    assert folder == tmp_path / "deep" / "bundle"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == FILES
    bundle = read(folder, key)
    assert replace(bundle.manifest, files={}) == MANIFEST
    assert type(bundle.manifest.structure[1][0]) is ConformerOutput
    assert bundle.signed is (key is not None)
    assert {name: bundle.read(name) for name in bundle.manifest.files} == FILES
    for name, stored in bundle.manifest.files.items():
        assert stored == (hashlib.sha256(FILES[name]).hexdigest(), len(FILES[name]))


def test_entries_of_the_file(folder):
    content = json.loads((folder / "manifest.json").read_bytes())
    assert (content["schema"], content["hmac"]) == (3, None)
    assert content["outputs"] == ["3.map", "conv_logits", "trans_logits"]
    structure = {"list": ["3.map", {"tuple": [{"ConformerOutput": ["conv_logits", "trans_logits"]}]}]}
    assert content["structure"] == structure
    assert content["files"]["labels.txt"] == {"sha256": hashlib.sha256(b"cat\ndog\n").hexdigest(), "bytes": 8}
    assert content["shapes"][1]["width"] == [224, 320, 448]
    expected = "schema conformer_fast backend precision precisions config pad outputs structure shapes runtime "
    expected += "preprocessing labels sha256 files measured rebuild hmac digest"
    assert list(content) == expected.split()


def test_key(tmp_path):
    signed, unsigned = (write_bundle(tmp_path / str(key), MANIFEST, FILES, key) for key in (KEY, None))
    read(signed)
    with pytest.raises(BundleError, match="is not signed with this key; get the bundle from its owner"):
        read(signed, b"another key of this size")
    with pytest.raises(BundleError, match="is not signed, and a key was given"):
        read(unsigned, KEY)
    for signature in ("0" * 64, "\u00e9\ud800", ["a list"], 0):
        edit(signed, lambda content, signature=signature: {**content, "hmac": signature})
        with pytest.raises(BundleError, match="is not signed with this key"):
            read(signed, KEY)


def test_a_new_digest_does_not_help_against_a_key(tmp_path):
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES, KEY)
    edit(folder, lambda content: {**content, "rebuild": "rm -r /"})
    assert read(folder).manifest.rebuild == "rm -r /"
    with pytest.raises(BundleError, match="is not signed with this key"):
        read(folder, KEY)


@pytest.mark.parametrize(("key", "error"), [("text", TypeError), (b"", ValueError)], ids=repr)
def test_keys_are_bytes(key, error, folder):
    with pytest.raises(error, match="a bundle's key must "):
        read(folder, key)
    with pytest.raises(error, match="a bundle's key must "):
        write_bundle(folder, MANIFEST, FILES, key)


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bit", [0, 5])
def test_no_bit_of_the_manifest_changes_unnoticed(bit, key, tmp_path):
    """Of the signature neither, without the key."""
    folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES, key)
    path = folder / "manifest.json"
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1 << bit]) + content[index + 1 :])
        with pytest.raises(BundleError):
            read(folder)
    path.write_bytes(content)
    read(folder, key)


def twice(content: bytes) -> bytes:
    return content.replace(b'"schema": 3', b'"schema": 3,\n "schema": 3')


BROKEN = {
    "empty": (lambda content: b"", "is damaged: Expecting value"),
    "cut": (lambda content: content[:-100], "is damaged: "),
    "not UTF-8": (lambda content: content[:40] + b"\xff" + content[41:], "is damaged: 'utf-8' codec"),
    "too large": (lambda content: content + b" " * (1 << 20), "bytes, a manifest at most 1,048,576"),
    "too deep": (lambda content: b"[" * 200_000, "is damaged: "),
    "an entry twice": (twice, "is damaged: an entry is there twice"),
    "not a number": (lambda content: content.replace(b"0.001", b"NaN"), "is damaged: NaN is no number"),
    "a list": (lambda content: b"[]\n", "is no bundle's manifest; give the folder of a bundle"),
    "another program's": (lambda content: b'{"name": "app"}\n', "is no bundle's manifest; give the folder of a bundle"),
    "a true schema": (lambda content: content.replace(b'"schema": 3', b'"schema": true'), "is no bundle's manifest"),
    "an older schema": (
        lambda content: content.replace(b'"schema": 3', b'"schema": 1'),
        "has schema 1, .* reads 3; make the bundle again",
    ),
    "a newer schema": (lambda content: content.replace(b'"schema": 3', b'"schema": 4'), "has schema 4, .* reads 3; in"),
    "spaces": (lambda content: content.replace(b": ", b":  ", 1), "is damaged or was edited"),
    "line ends": (lambda content: content.replace(b"\n", b"\r\n"), "is damaged or was edited"),
    "another value": (lambda content: content.replace(b"sm86", b"sm87"), "is damaged or was edited"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_manifest(change, message, folder):
    path = folder / "manifest.json"
    content = change(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read(folder)


def named(name: str):
    """A file of another name in the manifest."""
    return lambda content: content["files"].update({name: content["files"]["labels.txt"]})


WRONG = {
    "an entry missing": (lambda content: content.pop("pad") and None, "its entries pad are missing or unknown"),
    "an entry too many": (lambda content: content.update(more=1), "its entries more are missing or unknown"),
    "backend": (
        lambda content: content.update(backend="other"),
        "is no bundle's manifest: no backend is called 'other'",
    ),
    "precision": (lambda content: content.update(precision="fp7"), "it has the precision 'fp7'"),
    "pad": (lambda content: content.update(pad="all"), "it has the pad 'all'"),
    "runtime": (lambda content: content["runtime"].pop("flavor") and None, "its runtime must have flavor, version"),
    "targets": (lambda content: content["runtime"].update(targets="sm86"), "its runtime must have flavor, version"),
    "config": (lambda content: content["config"].update(depth=4), "depth must be a multiple of 3"),
    "config of other names": (lambda content: content["config"].update(size=4), "unexpected keyword argument 'size'"),
    "shapes": (lambda content: content["shapes"][0].update(batch=[2, 1, 1]), "batch of shapes must be"),
    "the shapes' type": (lambda content: content.update(shapes=[7]), "shapes must have"),
    "outputs": (lambda content: content["outputs"].reverse(), "is not made of its outputs"),
    "no outputs": (lambda content: content.update(outputs=[], structure={"list": []}), "is not made of its outputs"),
    "an output twice": (
        lambda content: content.update(outputs=["1.map"] * 2, structure={"list": ["1.map"] * 2}),
        "is not made of its outputs",
    ),
    "no shapes": (lambda content: content.update(shapes=[]), "it names no shapes that its engine takes"),
    "labels without a name": (lambda content: content.update(labels=""), "it lacks the file ;"),
    "structure": (lambda content: content.update(structure={"os.system": ["3.map"]}), "its structure has {'os.system'"),
    "a structure's length": (
        lambda content: content.update(outputs=["3.map"], structure={"ConformerOutput": ["3.map"]}),
        "Expected 2 arguments, got 1",
    ),
    "a structure's type": (lambda content: content.update(structure={"list": [7]}), "its structure has 7"),
    "a path": (named("../labels.txt"), "its file's name '../labels.txt' is not a plain one"),
    "a folder": (named("a/b"), "its file's name 'a/b' is not a plain one"),
    "a drive": (named("c:b"), "its file's name 'c:b' is not a plain one"),
    "a hidden file": (named(".labels"), "its file's name '.labels' is not a plain one"),
    "no name": (named(""), "its file's name '' is not a plain one"),
    "a new line": (named("labels\n"), "is not a plain one"),
    "itself": (named("manifest.json"), "its file's name 'manifest.json' is not a plain one"),
    "a file's entry": (lambda content: content["files"].update({"labels.txt": 7}), "its file labels.txt needs sha256"),
    "a true size": (lambda content: content["files"]["labels.txt"].update(bytes=True), "its file labels.txt needs sha"),
    "another size": (lambda content: content["files"]["labels.txt"].update(bytes=9), "it has 8 bytes of 9, or another"),
    "a huge size": (lambda content: content["files"]["labels.txt"].update(bytes=10**99), "it has 8 bytes of 1,000,"),
    "another hash": (
        lambda content: content["files"]["labels.txt"].update(sha256="0" * 64),
        "it has 8 bytes of 8, or anoth",
    ),
    "no hash": (lambda content: content["files"]["labels.txt"].update(sha256="../x"), "sha256 '../x', which is none"),
    "a NUL in a hash": (
        lambda content: content["files"]["labels.txt"].update(sha256="\0" * 64),
        r"has the sha256 '(\\x00)+",
    ),
    "a long name": (named("\x1b" * 5000), r"^.{,500}its file's name '\\x1b.{,300}$"),
    "a mean of 0 to 255": (
        lambda content: content.update(preprocessing={"mean": [123.7] * 3, "std": [58.4] * 3}),
        "mean must be numbers from 0 to 1",
    ),
    "a gray mean": (lambda content: content.update(preprocessing={"mean": [0.5], "std": [0.5]}), "are of 1 channels"),
    "a size of text": (lambda content: content.update(preprocessing={"size": "64"}), "size must be a whole number"),
    "a small size": (lambda content: content.update(preprocessing={"size": 8}), "smaller than one patch of 16"),
    "no plan": (lambda content: content["files"].pop("model.plan") and None, "it lacks the files model.plan"),
    "no labels": (lambda content: content["files"].pop("labels.txt") and None, "it lacks the file labels.txt"),
}
KINDS = {name: [] for name in ("conformer_fast", "backend", "precisions", "config", "runtime", "files", "labels")}
KINDS |= dict.fromkeys(("pad", "precision", "rebuild", "sha256", "outputs", "shapes", "structure"), 1.5)
KINDS |= {"preprocessing": [], "measured": "well"}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_content_under_a_right_digest(change, message, folder):
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        read(folder)


@pytest.mark.parametrize(("name", "value"), KINDS.items(), ids=KINDS)
def test_wrong_type_under_a_right_digest(name, value, folder):
    edit(folder, lambda content: {**content, name: value})
    with pytest.raises(BundleError, match=f"its {name} has the wrong type, {type(value).__name__}"):
        read(folder)


def test_unchanged_edit_is_read(folder):
    """The tests above fail for what they change, not for how."""
    before = (folder / "manifest.json").read_bytes()
    edit(folder, lambda content: None)
    assert (folder / "manifest.json").read_bytes() == before
    read(folder)


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["manifest.json", "model.plan", "labels.txt"])
@pytest.mark.parametrize("make", [make_link, make_folder, make_pipe])
def test_only_plain_files(make, name, folder):
    make(folder / name)
    with pytest.raises(BundleError, match=f"{name} is a link or a folder, a bundle's files must be plain files"):
        read(folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.plan", "labels.txt"])
def test_missing_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} cannot be read \(No such file or directory\); give the folder of"):
        read(folder)


def test_unreadable_file(folder, monkeypatch):
    def denied(path, limit=None):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("conformer_fast.bundles.folder.read_regular", denied)
    with pytest.raises(BundleError, match=r"manifest.json cannot be read \(Permission denied\)"):
        read(folder)


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for missing in ("nowhere", "file"):
        with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
            read(tmp_path / missing)


def test_other_files_may_lie_there(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "runtime.cache").write_bytes(b"")
    read(folder)


def test_link_to_the_folder(folder, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(folder)
    read(link)
    written = write_bundle(link, replace(MANIFEST, rebuild="again"), FILES)
    assert written == folder
    assert link.is_symlink()
    assert read(link).manifest.rebuild == "again"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changes_later_is_noticed(name, folder):
    """What is kept from its verification is given out once."""
    bundle = read(folder)
    (folder / name).write_bytes(FILES[name][::-1])
    assert bundle.read(name) == FILES[name]
    with pytest.raises(BundleError, match=r"is not the file that .* or make it again: conformer-fast build \.\.\."):
        bundle.read(name)


def test_earlier_bundle_is_replaced(folder):
    (folder / "runtime.cache.hash").write_text("of the earlier plan")
    assert write_bundle(folder, replace(MANIFEST, labels=None), {"model.plan": b"new"}) == folder
    assert read(folder).read("model.plan") == b"new"
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "model.plan"}
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_empty_folder_is_used(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, MANIFEST, FILES)
    read(folder)


FOREIGN = {
    "a file of the user's": {"notes.txt": b"mine"},
    "another program's manifest": {"manifest.json": b'{"name": "app"}', "index.html": b""},
    "a manifest alone": {"manifest.json": b'{"name": "app"}'},
}


@pytest.mark.parametrize("there", FOREIGN.values(), ids=FOREIGN)
def test_other_folders_are_left_alone(there, tmp_path):
    for name, content in there.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=r"holds files that are no bundle's: .*; move them away or give another"):
        write_bundle(tmp_path, MANIFEST, FILES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == there


def test_bundle_with_a_file_of_the_users_is_left_alone(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds files that are no bundle's: notes\.txt; move"):
        write_bundle(folder, MANIFEST, FILES)
    assert (folder / "notes.txt").read_text() == "mine"


def test_file_in_place_of_the_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(BundleError, match="is a file, or lies in one; give the folder that the bundle is to be"):
        write_bundle(path, MANIFEST, FILES)
    with pytest.raises(BundleError, match="is a file, or lies in one"):
        write_bundle(path / "bundle", MANIFEST, FILES)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("earlier", [True, False], ids=["replacing", "new"])
def test_failed_write_changes_nothing(failing, earlier, tmp_path, monkeypatch):
    """Whichever file the disk has no room for; the manifest is the last."""
    folder = tmp_path / "bundle"
    if earlier:
        write_bundle(folder, MANIFEST, FILES)
    before = sorted(tmp_path.rglob("*"))
    original, written = os.replace, []

    def fail(source, target):
        written.append(target)
        if len(written) - 1 == failing + earlier:
            raise OSError(28, "No space left on device")
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(BundleError, match=r"cannot be written: .*No space left on device.*; nothing was changed"):
            write_bundle(folder, replace(MANIFEST, rebuild="again"), FILES)
    assert sorted(tmp_path.rglob("*")) == before
    if earlier:
        assert read(folder).manifest.rebuild == MANIFEST.rebuild


def test_folders_have_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        (tmp_path / "usual").mkdir()
        folder = write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    finally:
        os.umask(before)
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


@pytest.mark.parametrize(
    "structure",
    ["1.map", ["1.map"], ("1.map",), ConformerFeatures(("1.map", "2.map"), "3.tokens"), [("1.map",), ["2.map"]]],
    ids=str,
)
def test_structures(structure, tmp_path):
    outputs = tuple(name for name in ("1.map", "2.map", "3.tokens") if name in repr(structure))
    write_bundle(tmp_path, replace(MANIFEST, structure=structure, outputs=outputs), FILES)
    found = read(tmp_path).manifest.structure
    assert found == structure
    assert repr(found) == repr(structure)


def test_foreign_container_is_refused(tmp_path):
    foreign = namedtuple("Scores", ["conv", "trans"])("conv_logits", "trans_logits")
    manifest = replace(MANIFEST, structure=foreign, outputs=("conv_logits", "trans_logits"))
    with pytest.raises(BundleError, match="the model returns a Scores, a class that a bundle cannot restore; compile"):
        write_bundle(tmp_path / "bundle", manifest, FILES)
    assert not (tmp_path / "bundle").exists()


def test_mismatch_says_what_and_survives_a_pickle():
    error = EngineMismatchError("GPU", "sm86", "sm90", "conformer-fast build --target sm90")
    for other in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(other, BundleError)
        assert (other.field, other.expected, other.found) == ("GPU", "sm86", "sm90")
        assert str(other) == (
            "the engine does not fit this machine: GPU must be sm86, here it is sm90; "
            "build it again here: conformer-fast build --target sm90"
        )


def test_a_mismatch_quotes_a_manifest_in_short():
    strange = "\x1b[2J\n" * 5000
    text = str(EngineMismatchError("GPU", strange, strange, strange))
    assert text.isprintable()
    assert len(text) < 1000


def test_a_backend_says_what_its_bundles_need(folder):
    """Neither shapes nor what its runtime has are asked of every bundle."""
    edit(folder, lambda content: content.update(shapes=[], runtime={}))
    bundle = read_bundle(folder, lambda backend: Format((), {}))
    assert (bundle.manifest.shapes, bundle.manifest.runtime) == ((), {})


def test_a_manifest_of_another_schema_is_no_bundle_to_replace(folder):
    """Its digest is right, but not its entries: perhaps a later version wrote it."""
    edit(folder, lambda content: content.update(more=1))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BundleError, match="holds files that are no bundle's"):
        check_writable(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_ctrl_c_while_a_bundle_is_replaced(folder, monkeypatch):
    """The earlier one is still there."""
    rename, before = os.replace, {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(source, target):
        if target == folder / "manifest.json":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(folder, replace(MANIFEST, rebuild="again"), FILES)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
