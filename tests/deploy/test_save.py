"""save(): what is refused before a byte is written, the classes' names, and the copy of a loaded model's bundle."""

from collections import namedtuple
from dataclasses import replace

import lookalikes
import pytest
from bundle_samples import KEY, contents, fake_runtime, filled, images, need_openvino, rewrite, same, saved, write_plan
from fake_cuda import fake_cuda

import conformer_fast as cf
from conformer_fast import Conformer
from conformer_fast.bundles.folder import read_bundle
from conformer_fast.engines.registry import format_of
from conformer_fast.errors import BackendError, BundleError


@pytest.fixture
def tensorrt(small_model):
    with fake_runtime(small_model) as fake:
        yield fake


def test_reference_is_not_saved(small_model, tmp_path):
    with pytest.raises(
        BackendError,
        match=r"'reference' has no engine to save; compile with backend triton, tensorrt, native, openvino$",
    ):
        cf.compile(small_model, backend="reference").save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_compiling_a_loaded_model_is_refused(small_model, tmp_path, tensorrt):
    loaded = cf.load(saved(tmp_path / "bundle", "tensorrt", small_model))
    with pytest.raises(TypeError, match="the model is compiled already; give the one it was made from"):
        cf.compile(loaded)


def test_foreign_structure_is_not_saved(small_config, tmp_path):
    scores = namedtuple("Scores", ["conv", "trans"])

    class Foreign(lookalikes.OfficialConformer):
        def forward(self, batch):
            return scores(*super().forward(batch))

    with fake_cuda():
        fast = cf.compile(filled(Foreign(small_config)), backend="triton", precision="fp32")
        assert type(fast(images(1, 3, 32, 32))) is scores
        with pytest.raises(BundleError, match="the model returns a Scores, a class that a bundle cannot restore"):
            fast.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_other_folders_are_refused_before_any_work(small_model, tmp_path, monkeypatch):
    need_openvino()
    fast = cf.compile(small_model, backend="openvino", precision="fp32")
    monkeypatch.setattr(type(fast.settings.backend), "graph", lambda *_: pytest.fail("worked before it looked"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds files that are no bundle's: notes\.txt"):
        fast.save(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


# Labels


LABEL_FAULTS = {
    "too few": (["a"] * 6, "6 labels for .*7 classes"),
    "too many": (["a"] * 8, "8 labels for .*7 classes"),
    "two lines": ([*"abcdef", "g\nh"], r"must be one line of text, got 'g\\nh'"),
    "empty": ([*"abcdef", ""], "must be one line of text, got ''"),
    "no text": ([*"abcdef", 7], "must be one line of text, got 7"),
}


@pytest.mark.parametrize(("labels", "message"), LABEL_FAULTS.values(), ids=LABEL_FAULTS)
@pytest.mark.parametrize("kind", ["compiled", "loaded"])
def test_wrong_labels(kind, labels, message, small_model, tmp_path, tensorrt):
    with fake_cuda():
        if kind == "loaded":
            model = cf.load(saved(tmp_path / "bundle", "tensorrt", small_model))
        else:
            model = cf.compile(small_model, backend="triton", precision="fp32")
        with pytest.raises(ValueError, match=message):
            model.save(tmp_path / "new", labels=labels)
    assert not (tmp_path / "new").exists()


def test_own_labels(small_model, tmp_path):
    labels = [f"kind {letter}" for letter in "abcdefg"]
    with fake_cuda():
        fast = cf.compile(small_model, backend="triton", precision="fp32")
        folder = fast.save(tmp_path / "bundle", labels=labels)
        assert cf.load(folder).labels == tuple(labels)
    assert fast.labels == tuple(f"class {index}" for index in range(7))


def test_features_have_none(small_config, tmp_path, tensorrt):
    model = filled(Conformer(small_config, features_only=True))
    loaded = cf.load(write_plan(tmp_path / "bundle", model))
    assert loaded.labels == ()
    with pytest.raises(BundleError, match="bundle has no scores that could have labels"):
        loaded.save(tmp_path / "new", labels=["a"] * 7)
    assert loaded.save(tmp_path / "new").is_dir()


@pytest.mark.parametrize("labels", [b"\xff\n" * 7, b"class\n" * 6, b""])
def test_wrong_labels_under_a_right_hash(labels, small_model, tmp_path, tensorrt):
    folder = saved(tmp_path / "bundle", "tensorrt", small_model)
    rewrite(folder, "labels.txt", labels)
    with pytest.raises(BundleError, match=r"is not UTF-8|has [16] labels for 7 classes"):
        cf.load(folder)


# Copies of a loaded model's bundle


@pytest.mark.parametrize("backend", ["openvino", "triton", "tensorrt"])
def test_a_loaded_model_is_copied(backend, small_model, tmp_path, tensorrt):
    if backend == "openvino":
        need_openvino()
    with fake_cuda():
        folder = saved(tmp_path / "bundle", backend, small_model)
        before = contents(folder)
        copied = cf.load(folder).save(tmp_path / "copy")
        assert copied == tmp_path / "copy"
        assert contents(copied) == contents(folder) == before
        again = cf.load(copied)
        if backend != "tensorrt":  # whose pretended GPU takes no images
            batch = images(2, 3, 32, 32)
            assert same(again(batch), cf.load(folder)(batch))


def test_a_copy_may_have_other_labels_and_a_key(small_model, tmp_path, tensorrt):
    folder = saved(tmp_path / "bundle", "tensorrt", small_model)
    loaded = cf.load(folder)
    labels = tuple(f"kind {letter}" for letter in "abcdefg")
    copied = loaded.save(tmp_path / "copy", labels=labels, key=KEY)
    assert cf.load(copied, key=KEY).labels == labels
    with pytest.raises(BundleError, match="is not signed with this key"):
        cf.load(copied, key=b"another key of this size")
    with pytest.raises(BundleError, match="is not signed, and a key was given"):
        cf.load(folder, key=KEY)
    first, second = (read_bundle(path, format_of).manifest for path in (folder, copied))
    assert replace(first, files={}) == replace(second, files={})
    assert {name for name in first.files if first.files[name] != second.files[name]} == {"labels.txt"}
    assert contents(copied)["labels.txt"] == "".join(f"{label}\n" for label in labels).encode()
    assert cf.load(cf.load(copied).save(tmp_path / "unsigned")).labels == labels


def test_a_copy_over_its_own_bundle(small_model, tmp_path, tensorrt):
    folder = saved(tmp_path / "bundle", "tensorrt", small_model)
    assert cf.load(folder).save(folder, labels=[*"abcdefg"]) == folder
    assert cf.load(folder).labels == tuple("abcdefg")


def test_a_bundle_that_changed_since_is_not_copied(small_model, tmp_path, tensorrt):
    folder = saved(tmp_path / "bundle", "tensorrt", small_model)
    loaded = cf.load(folder)
    (folder / "model.plan").write_bytes(b"another")
    with pytest.raises(BundleError, match="is not the file that the bundle was made with"):
        loaded.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_copy_leaves_other_folders_alone(small_model, tmp_path, tensorrt):
    loaded = cf.load(saved(tmp_path / "bundle", "tensorrt", small_model))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds files that are no bundle's: notes\.txt"):
        loaded.save(tmp_path / "other")
    assert contents(tmp_path / "other") == {"notes.txt": b"mine"}


@pytest.mark.parametrize("label", ["a\n", "a\r\n", "", "a\nb", "a\udc80b", 1], ids=repr)
def test_a_label_is_one_line_of_text(label, tmp_path):
    fast = cf.compile(cf.create_model("digits"), backend=cf.OpenVINO())
    with pytest.raises(ValueError, match="a label must be one line of text"):
        fast.save(tmp_path / "bundle", labels=[label] * 10)
    assert not (tmp_path / "bundle").exists()


def test_labels_are_a_list_of_names(tmp_path):
    fast = cf.compile(cf.create_model("digits"), backend=cf.OpenVINO())
    for labels in ("abcdefghij", (str(digit) for digit in range(10))):
        with pytest.raises(TypeError, match="labels must be a list of names"):
            fast.save(tmp_path / "bundle", labels=labels)


def test_labels_are_for_scores(tmp_path):
    fast = cf.compile(cf.create_model("digits", features_only=True), backend=cf.OpenVINO())
    with pytest.raises(ValueError, match=r"labels are for scores, and the model returns 1\.map, .*; leave them out"):
        fast.save(tmp_path / "bundle", labels=[str(digit) for digit in range(10)])
