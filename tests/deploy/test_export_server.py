"""export_server(): the model's folder in a repository, and what is refused. What is in it: test_triton_server.py."""

import os
import stat
from functools import partial

import bundle_samples
import pytest
import torch

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines.registry import format_of
from conformer_fast.errors import BundleError

write_plan = partial(bundle_samples.write_plan, shapes=cf.Shapes(batch=(1, 8, 32)))


def test_it_is_called_as_the_bundles_folder(small_model, tmp_path, monkeypatch):
    write_plan(tmp_path / "bundle", small_model)
    assert cf.export_server(tmp_path / "bundle", tmp_path / "models") == tmp_path / "models" / "bundle"
    monkeypatch.chdir(tmp_path / "bundle")
    assert cf.export_server(".", tmp_path / "others") == tmp_path / "others" / "bundle"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "-a", "a b", 'a"', "a\n", "ä"], ids=repr)
def test_names_that_cannot_be(name, small_model, tmp_path):
    bundle = write_plan(tmp_path / "bundle", small_model)
    with pytest.raises(ValueError, match="a model's name has letters"):
        cf.export_server(bundle, tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


def test_no_instances(small_model, tmp_path):
    with pytest.raises(ValueError, match="instances must be a whole number, at least 1, got 0"):
        cf.export_server(
            write_plan(tmp_path / "bundle", small_model), tmp_path / "models", name="conformer", instances=0
        )


def test_an_engine_of_openvino(small_model, tmp_path):
    pytest.importorskip("openvino")
    fast = cf.compile(small_model, backend="openvino", precision="fp32")
    fast(torch.zeros(1, 3, 32, 32))
    with pytest.raises(BundleError, match="an engine of backend 'openvino', which the server does not run"):
        cf.export_server(fast.save(tmp_path / "bundle"), tmp_path / "models", name="conformer")


def test_a_model_that_is_there_is_left_alone(small_model, tmp_path):
    bundle = write_plan(tmp_path / "bundle", small_model)
    folder = cf.export_server(bundle, tmp_path / "models", name="conformer")
    (folder / "config.pbtxt").write_text("mine")
    with pytest.raises(BundleError, match=r"models/conformer cannot be written: .*; remove it, or choose another name"):
        cf.export_server(bundle, tmp_path / "models", name="conformer")
    assert (folder / "config.pbtxt").read_text() == "mine"
    assert list(folder.parent.iterdir()) == [folder]
    assert cf.export_server(bundle, tmp_path / "models", name="second") == tmp_path / "models" / "second"


@pytest.mark.parametrize("there", [True, False])
def test_the_folder_is_as_private_as_asked(there, small_model, tmp_path):
    """As the umask says, or as the empty folder that was there."""
    folder, before = tmp_path / "models" / "conformer", os.umask(0o022 if there else 0o077)
    try:
        bundle = write_plan(tmp_path / "bundle", small_model)
        if there:
            folder.mkdir(0o700, parents=True)
        assert cf.export_server(bundle, tmp_path / "models", name="conformer") == folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.parent.iterdir()] == ["conformer"]


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "link to nothing"])
def test_what_is_no_folder_is_left_alone(kind, small_model, tmp_path):
    bundle, path = write_plan(tmp_path / "bundle", small_model), tmp_path / "models" / "conformer"
    path.parent.mkdir()
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(bundle if kind == "link" else "nothing")
    before = path.lstat()  # its time of access changes when a link is followed
    with pytest.raises(BundleError, match=r"models/conformer cannot be written: .*; remove it, or choose another name"):
        cf.export_server(bundle, path.parent, name="conformer")
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert list(path.parent.iterdir()) == [path]


def test_a_repository_whose_name_cannot_be(small_model, tmp_path):
    with pytest.raises(BundleError, match="embedded null"):
        cf.export_server(write_plan(tmp_path / "bundle", small_model), f"{tmp_path}/a\0b", name="conformer")


def test_a_repository_that_cannot_be_written(small_model, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(BundleError, match="cannot be written"):
        cf.export_server(write_plan(tmp_path / "bundle", small_model), tmp_path / "models", name="conformer")


@pytest.mark.parametrize("name", ["model.plan", "labels.txt", "manifest.json"])
def test_a_damaged_bundle(name, small_model, tmp_path):
    bundle = write_plan(tmp_path / "bundle", small_model)
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError):
        cf.export_server(bundle, tmp_path / "models", name="conformer")
    assert not (tmp_path / "models").exists()


def test_a_signed_bundle(small_model, tmp_path):
    bundle = write_plan(tmp_path / "bundle", small_model, key=b"a secret of 24 bytes ...")
    assert read_bundle(bundle, format_of).signed
    with pytest.raises(BundleError, match="not signed with this key"):
        cf.export_server(bundle, tmp_path / "models", name="conformer", key=b"another key of this size")
    assert cf.export_server(bundle, tmp_path / "models", name="conformer", key=b"a secret of 24 bytes ...").is_dir()
