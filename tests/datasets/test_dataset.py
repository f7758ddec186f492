"""Labeled pictures from folders, label files, tar and parquet files: what is found, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import pytest
import torch
from data_samples import found, picture, refused, shade, write, write_parquet, write_tar
from PIL import Image

from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.errors import ImageError
from conformer_fast.model.class_names import imagenet_synsets
from conformer_fast.preprocessing.cpu import preprocess

# Folders


def test_class_folders_are_numbered_by_name(tmp_path):
    names = {"b/2.png": 20, "b/1.JPEG": 10, "a/deep/x.png": 5, "c.d/1.webp": 7}
    write(tmp_path, {name: picture(value) for name, value in names.items()})
    write(tmp_path, {"a/notes.txt": b"no picture", "b/._2.png": b"macOS", ".hidden/1.png": b"no class"})
    (tmp_path / "e").mkdir()
    dataset = open_dataset(tmp_path, num_classes=4)
    assert found(dataset) == {"a/deep/x.png": 0, "b/1.JPEG": 1, "b/2.png": 1, "c.d/1.webp": 2}
    assert [shade(dataset, index) for index in range(len(dataset))] == [5, 10, 20, 7]
    assert dataset.kind == "folder"


def test_synset_folders_have_imagenets_classes_even_if_some_are_absent(tmp_path):
    synsets = imagenet_synsets()
    write(tmp_path, {f"{synsets[index]}/x.JPEG": picture(1) for index in (999, 0, 388)})
    assert open_dataset(tmp_path, num_classes=1000).labels == (0, 388, 999)
    assert open_dataset(tmp_path).labels == (0, 388, 999)
    assert open_dataset(tmp_path, num_classes=3).labels == (0, 1, 2)  # a model of these three


@pytest.mark.parametrize("classes", [1, 3])
def test_another_number_of_class_folders_than_classes_is_refused(tmp_path, classes):
    write(tmp_path, {"cat/1.png": picture(1), "dog/1.png": picture(1)})
    assert f"2 classes (cat, dog), the model has {classes}" in refused(tmp_path, None, classes)


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ({}, "has no pictures"),
        ({"a.png": b""}, "without a label"),
        ({"a/1.png": b"", "loose.png": b""}, "1 pictures beside its class folders, first loose.png"),
        ({"a.tar": b"", "b.parquet": b""}, "name one kind"),
        ({"x.tar.gz": b"", "y.zip": b""}, "but x.tar.gz, y.zip: unpack them"),
        ({"a.tar": b"no tar"}, "not a whole, uncompressed tar file"),
    ],
)
def test_folders_that_say_too_little(tmp_path, contents, text):
    assert text in refused(write(tmp_path, contents))


def test_what_is_not_there(tmp_path):
    assert "no file or folder" in refused(tmp_path / "absent")
    assert "a-3.tar" in refused(str(tmp_path / "a-{3..4}.tar"))
    assert "a-3*.tar" in refused(str(tmp_path / "a-{3..4}*.tar"))
    assert "unpack it" in refused(write(tmp_path, {"x.tar.gz": b""}) / "x.tar.gz")
    assert "tar files or parquet files" in refused(write(tmp_path, {"x.txt": b""}) / "x.txt")


# Label files


@pytest.mark.parametrize(
    "lines",
    [
        "v_1.JPEG 65\nv_2.JPEG 970\nv_3.JPEG 230",
        "v_3.JPEG 230\n\nv_1.JPEG\t65\nv_2 970\n",
        "./v_1.JPEG 65\nv_2.JPEG 970\nv_3.JPEG 230",
        "v_1.JPEG,65\nv_2.JPEG,970\nv_3.JPEG, 230",
        "v_1.JPEG n01751748\nv_2.JPEG n09193705\nv_3.JPEG n02105855",
        "n01751748\nn09193705\nn02105855\n",
        'filename,label,\nv_1.JPEG,65,\n\'v_2.JPEG\',970,\n"v_3.JPEG","230",'.replace("'", '"'),
        "image\tlabel\nv_1.JPEG\t65\nv_2.JPEG\t970\nv_3.JPEG\t230",
        "name label\nv_1.JPEG 65\nv_2.JPEG 970\nv_3.JPEG 230",
        "synset\nn01751748\nn09193705\nn02105855\n",
        "v_1.JPEG,sea snake\nv_2.JPEG,alp\nv_3.JPEG,Shetland sheepdog",
        "\ufeffImageId,PredictionString\nv_1,n01751748 111 108 4 5 \nv_2,n09193705 1 2 3 4 n09193705 5 6 7 8\n"
        "v_3,n02105855 1 2 3 4",
    ],
    ids=[
        "numbers",
        "any order, stems",
        "paths",
        "commas",
        "synsets",
        "synsets alone",
        "CSV",
        "TSV",
        "headings",
        "a heading",
        "class names",
        "Kaggle",
    ],
)
def test_label_files(tmp_path, lines):
    write(tmp_path / "val", {f"v_{index}.JPEG": picture(index) for index in (1, 2, 3)})
    (tmp_path / "labels.txt").write_text(lines, encoding="utf-8")
    dataset = open_dataset(tmp_path / "val", tmp_path / "labels.txt", 1000)
    assert found(dataset) == {"v_1.JPEG": 65, "v_2.JPEG": 970, "v_3.JPEG": 230}


def test_a_label_file_counts_more_than_folders(tmp_path):
    write(tmp_path / "val", {"a/my cat.png": picture(1), "b/y.png": picture(2), "z.png": picture(3)})
    (tmp_path / "labels.txt").write_text("b/y.png 1\nmy cat.png 4\nz.png 0")
    assert found(open_dataset(tmp_path / "val", tmp_path / "labels.txt", 5)) == {
        "z.png": 0,
        "a/my cat.png": 4,
        "b/y.png": 1,
    }


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("490\n361\n171\n", "another order than the models' scores"),
        ("n01751748\nn09193705", "2 lines for 3 pictures"),
        ("v_1.JPEG 1\nv_2.JPEG 2", "1 of 3 pictures have no line: v_3.JPEG"),
        ("v_1.JPEG 1\nv_2.JPEG 2\nv_3.JPEG 3\nv_4.JPEG 4", "1 of 4 lines name a picture that is not there: v_4.JPEG"),
        ("v_1.JPEG 1\nv_1 2\nv_2 1\nv_3 1", "line 2: v_1.JPEG has a label already"),
        ("v_1.JPEG 1000\nv_2 1\nv_3 1", "line 1: the label 1000 is none of 0 ... 999"),
        ("v_1.JPEG -1\nv_2 1\nv_3 1", "the label -1 means unlabeled"),
        ("v_1.JPEG cat\nv_2 1\nv_3 1", "line 1: the label 'cat' is neither"),
        ("v_1.JPEG 1\nv_2.JPEG,\nv_3 1", "line 2: 'v_2.JPEG,' is not"),
        ("v_1.JPEG 65 0.9\nv_2 1\nv_3 1", "line 1: the label '65 0.9' is neither"),
        ("v_1.JPEG,7 up\nv_2,1\nv_3,1", "line 1: the label '7 up' is neither"),
        ("v_1.JPEG,n01440764 tench\nv_2,1\nv_3,1", "line 1: the label 'n01440764 tench' is neither"),
        ("v_1,n01440764 1 2 3 4 n01443537 5 6 7 8\nv_2,1\nv_3,1", "line 1: the label 'n01440764 1 2 3 4 n01443537"),
        ("v_1.JPEG,0_3\nv_2,1\nv_3,1", "line 1: the label '0_3' is neither"),
        ("filename,fold,target\nv_1,1,30\nv_2,1,30\nv_3,1,30", "line 1: 'filename,fold,target' has 3 columns; write"),
        ("v_1\t1\t30\nv_2\t1\t30\nv_3\t1\t30", "has 3 columns; write only the picture and its class"),
        ("v_1\t\t30\nv_2\t\t30\nv_3\t\t30", r"line 1: 'v_1\t\t30' is not a picture's name and its label"),
        ("v_1.JPEG;1\nv_2.JPEG;2\nv_3.JPEG;3", "line 1: 'v_1.JPEG;1' is not a picture's name and its class; write a"),
        ("", "is empty"),
    ],
)
def test_label_files_that_say_too_little_or_too_much(tmp_path, lines, text):
    write(tmp_path / "val", {f"v_{index}.JPEG": picture(index) for index in (1, 2, 3)})
    (tmp_path / "labels.txt").write_text(lines)
    assert text in refused(tmp_path / "val", tmp_path / "labels.txt", 1000)


@pytest.mark.parametrize("lines", ["cat\ndog\n", "0\n1\n", "a.png;cat\nb.png;dog\n"])
def test_lines_of_one_word_for_another_model_than_imagenets(tmp_path, lines):
    write(tmp_path / "val", {"a.png": picture(1), "b.png": picture(2)})
    (tmp_path / "labels.txt").write_text(lines)
    for names in (None, ["cat", "dog"]):
        message = refused(tmp_path / "val", tmp_path / "labels.txt", 2, names)
        assert "apart by a comma, such as 'a.png,cat'" in message
        assert "development kit" not in message


def test_a_name_that_means_two_pictures(tmp_path):
    write(tmp_path / "val", {"a/1.png": picture(1), "b/1.png": picture(2)})
    (tmp_path / "labels.txt").write_text("1.png 0\nb/1.png 1")
    assert "several pictures are called 1.png" in refused(tmp_path / "val", tmp_path / "labels.txt")


def test_names_with_commas_and_umlauts(tmp_path):
    """Umlauts as one character in the label file and two in the folder (NFD, as on macOS), and the other way."""
    names = ["my, cat.png", "Bär.png", "o\u0308l.png"]
    write(tmp_path / "val", {names[0]: picture(1), "Ba\u0308r.png": picture(2), "öl.png": picture(3)})
    (tmp_path / "labels.txt").write_text("".join(f'"{name}",{index}\n' for index, name in enumerate(names)))
    labels = open_dataset(tmp_path / "val", tmp_path / "labels.txt", 3)
    assert found(labels) == {"my, cat.png": 0, "Ba\u0308r.png": 1, "öl.png": 2}


def test_a_label_file_that_cannot_be_read(tmp_path):
    write(tmp_path / "val", {"1.png": picture(1)})
    assert "cannot be read" in refused(tmp_path / "val", tmp_path / "absent.txt")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe1")
    assert "no UTF-8 text" in refused(tmp_path / "val", tmp_path / "labels.txt")


# Tar files


def test_webdataset_shards(tmp_path):
    for shard in range(3):
        contents = {}
        for number in range(2):
            key = f"sample.{shard}/{number:03d}"
            contents[f"{key}.cls"] = str(shard + number).encode()
            contents[f"{key}.v2.jpg" if number else f"{key}.jpg"] = picture(10 * shard + number, "JPEG")
            contents[f"{key}.txt"] = b"a caption"
        write_tar(tmp_path / f"val-{shard:02d}.tar", contents)
    dataset = open_dataset(tmp_path, num_classes=4)
    assert list(found(dataset).items())[:3] == [
        ("val-00.tar/sample.0/000.jpg", 0),
        ("val-00.tar/sample.0/001.v2.jpg", 1),
        ("val-01.tar/sample.1/000.jpg", 1),
    ]
    assert [shade(dataset, index) for index in range(6)] == pytest.approx([0, 1, 10, 11, 20, 21], abs=1)
    assert len(open_dataset(tmp_path / "val-0[01].tar")) == 4
    assert open_dataset(str(tmp_path / "val-{01..02}.tar")).labels == (1, 2, 2, 3)
    assert set(found(open_dataset(tmp_path / "val-01.tar"))) == {"sample.1/000.jpg", "sample.1/001.v2.jpg"}


def test_names_with_dots_keep_their_own_labels(tmp_path):
    contents: dict[str, bytes] = {}
    for number in range(3):
        contents |= {f"a/img.{number:06d}.jpg": picture(number), f"a/img.{number:06d}.cls": str(number).encode()}
    assert open_dataset(write_tar(tmp_path / "x.tar", contents), num_classes=3).labels == (0, 1, 2)
    del contents["a/img.000001.cls"]
    assert "1 of 3 pictures have no .cls" in refused(write_tar(tmp_path / "y.tar", contents))
    both = {"a.png": picture(1), "a.json": b'{"label": 1}', "a.cls": b"2", "b.png": picture(1), "b.cls": b"0"}
    assert open_dataset(write_tar(tmp_path / "z.tar", both)).labels == (2, 0)


def test_hidden_folders_in_a_tar_do_not_count(tmp_path):
    contents = {"val/a/1.png": picture(1), "val/a/.ipynb_checkpoints/1.png": picture(1), "val/b/2.png": picture(2)}
    with pytest.warns(UserWarning, match=r"left out hidden files: 1 \(val/a/.ipynb_checkpoints/1.png\)"):
        dataset = open_dataset(write_tar(tmp_path / "x.tar", contents), num_classes=2)
    assert found(dataset) == {"val/a/1.png": 0, "val/b/2.png": 1}


def test_labels_in_json(tmp_path):
    contents = {"a.png": picture(1), "a.json": json.dumps({"label": 3, "width": 20}).encode()}
    contents |= {"b.json": b'{"label": "n01443537"}', "b.png": picture(2)}
    assert open_dataset(write_tar(tmp_path / "x.tar", contents), num_classes=1000).labels == (3, 1)


def test_class_folders_in_a_tar(tmp_path):
    contents = {"./val/b/1.png": picture(1), "./val/a": None, "./val/c/2.png": picture(2), "./val/c/x.json": b"{}"}
    dataset = open_dataset(write_tar(tmp_path / "x.tar", contents), num_classes=3)
    assert found(dataset) == {"val/b/1.png": 1, "val/c/2.png": 2}


@pytest.mark.parametrize("root", ["", "val/", "./data/val/"])
def test_the_outermost_folders_are_the_classes_in_a_tar_as_in_a_folder(tmp_path, root):
    contents = {"cat/dog/a.png": picture(1), "dog/cat/b.png": picture(2), "dog/c.png": picture(3)}
    inside = {f"{root}{name}": content for name, content in contents.items()}
    for names in (["dog", "cat"], None):
        expected = open_dataset(write(tmp_path / "folder", contents), None, 2, names).labels
        assert open_dataset(write_tar(tmp_path / "x.tar", inside), None, 2, names).labels == expected
    numbers = {f"{root}0/1/a.png": picture(1), f"{root}1/0/b.png": picture(2)}
    assert open_dataset(write_tar(tmp_path / "y.tar", numbers), num_classes=2).labels == (0, 1)


def test_a_tar_of_one_class(tmp_path):
    for name in ("dog/1.png", "val/dog/1.png"):
        assert open_dataset(write_tar(tmp_path / "x.tar", {name: picture(1)}), None, 2, ["cat", "dog"]).labels == (1,)


@pytest.mark.parametrize("names", [("cat/dog/a.png", "cat/eel/b.png"), ("cat/dog/a.png",), ("val/cat/dog/a.png",)])
def test_a_folder_of_all_pictures_that_may_be_their_class_is_refused(tmp_path, names):
    tar = write_tar(tmp_path / "x.tar", dict.fromkeys(names, picture(1)))
    message = refused(tar, None, 3, ["cat", "dog", "eel"])
    assert "all pictures are in the folder cat, which may be their class or hold the folders of the classes" in message
    (tmp_path / "labels.txt").write_text("\n".join(f"{name} eel" for name in names))
    assert set(open_dataset(tar, tmp_path / "labels.txt", 3, ["cat", "dog", "eel"]).labels) == {2}


def test_a_flat_tar_takes_a_label_file(tmp_path):
    contents = {f"ILSVRC2012_val_{index}.JPEG": picture(index) for index in (2, 1)}
    file = write_tar(tmp_path / "val.tar", contents)
    assert "without a label" in refused(file)
    (tmp_path / "labels.txt").write_text("n01440764\nn01443537\n")
    dataset = open_dataset(file, tmp_path / "labels.txt", 1000)
    assert found(dataset) == {"ILSVRC2012_val_2.JPEG": 1, "ILSVRC2012_val_1.JPEG": 0}
    assert [shade(dataset, index) for index in (0, 1)] == [2, 1]


def test_names_in_a_tar_are_only_names(tmp_path):
    """Nothing is written, links are not followed."""
    (tmp_path / "secret.png").write_bytes(picture(9))
    file = tmp_path / "inside" / "x.tar"
    file.parent.mkdir()
    write_tar(file, {"../a/escape.png": picture(1), "/b/absolute.png": picture(2)})
    with tarfile.open(file, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("c/link.png")
            link.type, link.linkname = kind, "../secret.png"
            archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    dataset = open_dataset(file)
    assert [shade(dataset, index) for index in range(len(dataset))] == [1, 2]
    assert sorted(tmp_path.rglob("*")) == before


def test_tars_that_are_refused(tmp_path):
    some = {"a.png": picture(1), "a.cls": b"1", "b.png": picture(2)}
    assert "a.tar: 1 of 2 pictures have no .cls or .json label: b.png" in refused(write_tar(tmp_path / "a.tar", some))
    wrong = {"a.png": picture(1), "a.cls": b"9"}
    assert f"{tmp_path}/e.tar: the label of a.png: " in refused(write_tar(tmp_path / "e.tar", wrong), None, 3)
    assert "is no label" in refused(write_tar(tmp_path / "b.tar", {"a.png": picture(1), "a.json": b"[1]"}))
    assert "unpack .tar.gz" in refused(write_tar(tmp_path / "c.tar", some, "w:gz"))
    whole = write_tar(tmp_path / "d.tar", {"a/x.png": picture(1), "a/y.png": bytes(4000)}).read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[:3000])
    assert "not a whole" in refused(tmp_path / "d.tar")


# Parquet files


def test_parquet_files(tmp_path):
    for number in range(2):
        rows = [picture(100 * number + index) for index in range(47)]
        write_parquet(
            tmp_path / f"validation-{number:05d}-of-00002.parquet", rows, [index % 7 for index in range(47)], 40
        )
    dataset = open_dataset(tmp_path, num_classes=7)
    assert len(dataset) == 94
    assert dataset.labels == tuple(index % 7 for index in range(47)) * 2
    assert dataset.pictures[50].name == "validation-00001-of-00002.parquet:3"
    for index in (0, 17, 39, 40, 46, 47, 93, 3, 3, 90, 0):  # forwards, across groups and files, and back
        assert shade(dataset, index) == 100 * (index // 47) + index % 47
    again = pickle.loads(pickle.dumps(dataset))  # as a decoding process gets it
    assert (shade(again, 5), again.sha256()) == (5, dataset.sha256())


def test_parquet_files_that_are_refused(tmp_path):
    write_parquet(tmp_path / "test.parquet", [picture(1)] * 2, [-1, -1])
    assert "test.parquet:0: the label -1 means unlabeled" in refused(tmp_path / "test.parquet")
    write_parquet(tmp_path / "null.parquet", [picture(1)] * 2, [0, None])
    assert "null.parquet:1: the label -1 means unlabeled" in refused(tmp_path / "null.parquet")
    write_parquet(tmp_path / "many.parquet", [picture(1)] * 2, [0, 7])
    assert "none of 0 ... 6" in refused(tmp_path / "many.parquet", None, 7)
    write_parquet(tmp_path / "named.parquet", [picture(1)] * 2, [0, 5], names=["cat", "dog"])
    message = refused(tmp_path / "named.parquet", None, None, ["cat", "dog", "eel"])
    assert "named.parquet:1: the label 5 is none of 0 ... 1, which have names in the file's schema" in message
    write_parquet(tmp_path / "text.parquet", [picture(1)] * 2, ["cat", "dog"])
    assert "label (string)" in refused(tmp_path / "text.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "many.parquet").read_bytes()[:100])
    assert "not a whole parquet file" in refused(tmp_path / "cut.parquet")
    assert "labels inside" in refused(tmp_path / "many.parquet", tmp_path / "labels.txt")
    outside = open_dataset(write_parquet(tmp_path / "outside.parquet", [None], [0]))
    with pytest.raises(ImageError, match="holds no bytes"):
        outside.input(0, 32)


def test_a_damaged_page_costs_only_its_rows(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", [picture(index) for index in range(40)], [0] * 40, 20)
    content = bytearray(file.read_bytes())
    content[4:44] = bytes(40)  # the head of the first group's pages, after the file's four letters
    file.write_bytes(content)
    dataset = open_dataset(file)
    with pytest.raises(ImageError, match=r"x\.parquet:1: "):
        dataset.input(1, 32)
    assert shade(dataset, 30) == 30


def test_splits_are_not_mixed(tmp_path):
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", [picture(1)], [0])
    assert "has the splits train, validation; name one" in refused(tmp_path)
    assert len(open_dataset(tmp_path / "validation-*.parquet")) == 1


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", [picture(1)], [0])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "conformer-fast[datasets]" in refused(tmp_path / "x.parquet")


# Any of them


def test_inputs_are_those_of_preprocess(tmp_path):
    write(tmp_path, {"a/1.JPEG": picture(77), "a/2.jpg": picture(50, "JPEG", "CMYK")})  # a PNG named JPEG; CMYK
    dataset = open_dataset(tmp_path)
    for index in (0, 1):
        expected = preprocess(Image.open(io.BytesIO(dataset.read(index))), 48)
        assert torch.equal(dataset.input(index, 48), expected)


def test_a_damaged_picture_is_named(tmp_path):
    write(tmp_path, {"a/1.png": picture(77)[:40], "a/2.png": picture(3)})
    dataset = open_dataset(tmp_path)
    with pytest.raises(ImageError, match=r"^a/1\.png: "):
        dataset.input(0, 32)
    (tmp_path / "a/2.png").unlink()
    with pytest.raises(ImageError, match=r"^a/2\.png: cannot be read"):
        dataset.input(1, 32)


def test_a_part_is_taken_evenly(tmp_path):
    write(tmp_path, {f"{index // 10}/{index:02d}.png": picture(index) for index in range(40)})
    dataset = open_dataset(tmp_path)
    assert dataset.evenly(8).labels == (0, 0, 1, 1, 2, 2, 3, 3)
    assert dataset.evenly(99) == dataset
    assert dataset.evenly(8).sha256() != dataset.evenly(9).sha256()


def test_the_digest_tells_data_sets_apart(tmp_path):
    write(tmp_path / "one", {"a/1.png": picture(1), "b/1.png": picture(1)})
    write(tmp_path / "two", {"a/1.png": picture(1), "b/1.png": picture(1)})
    digest = open_dataset(tmp_path / "one").sha256()
    assert open_dataset(tmp_path / "two").sha256() == digest  # wherever it is
    write(tmp_path / "two", {"b/1.png": picture(1) + b"more"})
    assert open_dataset(tmp_path / "two").sha256() != digest
    (tmp_path / "labels.txt").write_text("a/1.png 1\nb/1.png 0")
    assert open_dataset(tmp_path / "one", tmp_path / "labels.txt").sha256() != digest
