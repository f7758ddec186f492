"""Tar and parquet files that are damaged, or whose headers ask for what no reader should do."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archive_damage import broken_tar
from attempts import Attempts, check_words, every
from damage import NAMES, broken, broken_json
from data_samples import picture, write_parquet, write_tar
from hypothesis import strategies as st

from conformer_fast.datasets.dataset import Dataset, open_dataset
from conformer_fast.errors import DatasetError, ImageError

pytestmark = pytest.mark.slow

CLASSES = 3
SIZE = 16
PAGE_MEGABYTES = 2300  # pyarrow takes what a page says that it unpacks to, 2 GiB at most
WARNS = ("left out", "the classes are taken in this order")
FOLDERS = {f"{index % 3}/{index}.png": picture(40 * index) for index in range(6)}
SAMPLES = {
    **{f"{index}.png": picture(40 * index) for index in range(4)},
    **{f"{index}.cls": b"%d" % (index % 3) for index in range(3)},
    "3.json": b'{"label": 2}',
}


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name, inside in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(inside)
            member.pax_headers = {"comment": "x"} if form == tarfile.PAX_FORMAT else {}
            archive.addfile(member, io.BytesIO(inside))
    return content.getvalue()


TARS = {"folders": tar_of(FOLDERS), "samples": tar_of(SAMPLES, tarfile.USTAR_FORMAT)}


def facts(dataset: Dataset) -> tuple[tuple[str, int, bytes | None], ...]:
    """Of every picture its name, class and input; None for one that cannot be read. What cannot be, fails."""
    found = []
    for index, (one, label) in enumerate(zip(dataset.pictures, dataset.labels, strict=True)):
        assert type(label) is int
        assert 0 <= label < CLASSES
        try:
            pixels = dataset.input(index, SIZE)
        except ImageError as error:
            check_words(str(error))
            found.append((one.name, label, None))
        else:
            assert pixels.shape == (3, SIZE, SIZE)
            assert pixels.isfinite().all()
            found.append((one.name, label, pixels.numpy().tobytes()))
    return tuple(found)


def opened(path: Path) -> tuple[tuple[str, int, bytes | None], ...]:
    return facts(open_dataset(path, num_classes=CLASSES))


def trial(attempt: Attempts, name: str, sound: bytes, errors: Any = DatasetError) -> Callable[[bytes], None]:
    """Opens a file of this name, and reads all that is in it."""
    expected = opened(attempt.write(name, sound))

    def one(damaged: bytes) -> None:
        path = attempt.write(name, damaged)
        attempt.read(lambda: opened(path), errors, path.name, lambda found: found == expected, WARNS)

    return one


@pytest.mark.parametrize("kind", TARS)
def test_damaged_bytes_of_tar_files(kind, attempt: Attempts, tried):
    other = TARS["folders" if kind == "samples" else "samples"]
    every(broken(TARS[kind], other), 80, trial(attempt, "x.tar", TARS[kind]))
    attempt.check()
    tried(f"tar files ({kind}): bytes changed", attempt.counts)


@pytest.mark.parametrize("kind", TARS)
def test_headers_of_tar_files(kind, attempt: Attempts, tried):
    every(broken_tar(TARS[kind]), 120, trial(attempt, "x.tar", TARS[kind]))
    attempt.check()
    tried(f"tar files ({kind}): headers and members changed", attempt.counts)


def test_labels_in_tar_files(attempt: Attempts, tried):
    one = trial(attempt, "x.tar", TARS["samples"])
    texts = st.one_of(
        broken_json({"label": 2, "other": [1]}).map(lambda text: ("3.json", text.encode(errors="surrogatepass"))),
        st.tuples(st.just("1.cls"), st.one_of(broken(b"1"), st.text(max_size=8).map(str.encode))),
        st.tuples(st.sampled_from(("1.cls", "3.json")), st.just(b"9" * 5000)),
    )
    every(texts, 80, lambda changed: one(tar_of(SAMPLES | dict([changed]))))
    attempt.check()
    tried("tar files (samples): labels changed", attempt.counts)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar", "x.zip", "x.parquet"])
def test_compressed_files_are_refused_with_advice(name, attempt: Attempts):
    path = attempt.write(name, gzip.compress(TARS["folders"]))
    attempt.read(lambda: opened(path), DatasetError, path.name, lambda found: False)
    assert attempt.counts == {"refused": 1, "equal": 0, "other": 0}


@pytest.mark.filterwarnings("ignore:.*the classes are taken")
@pytest.mark.parametrize("attempt", [PAGE_MEGABYTES], indirect=True, ids=[""])
def test_damaged_bytes_of_parquet_files(attempt: Attempts, tried):
    pytest.importorskip("pyarrow")
    names = ["cat", "dog", "eel"]
    files = {
        compression: write_parquet(
            attempt.folder / "sound.parquet", list(FOLDERS.values()), [0, 1, 2] * 2, 2, names, compression
        ).read_bytes()
        for compression in ("none", "snappy", "zstd")
    }
    one = trial(attempt, "x.parquet", files["none"])
    every(st.sampled_from(sorted(files.values())).flatmap(lambda content: broken(content, files["zstd"])), 200, one)
    attempt.check()
    tried("parquet files: bytes changed", attempt.counts)


@pytest.mark.filterwarnings("ignore:.*the classes are taken")
def test_schemas_of_parquet_files(attempt: Attempts, tried):
    """What Hugging Face's metadata call the labels."""
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = write_parquet(
        attempt.folder / "x.parquet", list(FOLDERS.values()), [0, 1, 2] * 2, names=["cat", "dog", "eel"]
    )
    table, expected = parquet.read_table(path), opened(path)

    def one(text: str) -> None:
        metadata = {"huggingface": text.encode(errors="surrogatepass")}
        parquet.write_table(table.replace_schema_metadata(metadata), path)
        attempt.read(lambda: opened(path), DatasetError, path.name, lambda found: found == expected, WARNS)

    says = json.loads(table.schema.metadata[b"huggingface"])
    every(broken_json(says, ('"cat"', '["cat", "dog"]', '["cat", "dog", "eel", "fox"]')), 60, one)
    attempt.check()
    tried("parquet files: names of labels changed", attempt.counts)


@pytest.mark.parametrize(
    "kind", ["binary", "string", "int64", "struct", "list", "nulls", "duration", "float labels", "null labels"]
)
def test_columns_of_parquet_files(kind, attempt: Attempts):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "binary": (arrow.array(list(FOLDERS.values())), [0, 1, 2] * 2),
        "string": (arrow.array(["x"] * 6), [0, 1, 2] * 2),
        "int64": (arrow.array([1] * 6), [0, 1, 2] * 2),
        "struct": (arrow.array([{"path": "x"}] * 6), [0, 1, 2] * 2),
        "list": (arrow.array([[b"x"]] * 6), [0, 1, 2] * 2),
        "nulls": (arrow.array([None] * 6, arrow.binary()), [0, 1, 2] * 2),
        "duration": (arrow.array([2**62] * 6, arrow.duration("s")), [0, 1, 2] * 2),
        "float labels": (arrow.array(list(FOLDERS.values())), [0.0, 1.0, 2.0] * 2),
        "null labels": (arrow.array(list(FOLDERS.values())), arrow.array([None, 1, 2] * 2, arrow.int32())),
    }
    image, label = columns[kind]
    path = attempt.folder / "x.parquet"
    parquet.write_table(arrow.table({"image": image, "label": label}), path)
    found = attempt.read(lambda: opened(path), DatasetError, path.name, lambda found: True)
    if kind == "binary":
        assert all(pixels is not None for _, _, pixels in found)
    elif "labels" in kind:
        assert found is None
    else:
        assert all(pixels is None for _, _, pixels in found)


def test_two_columns_of_one_name(attempt: Attempts):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images, labels = arrow.array(list(FOLDERS.values())), arrow.array([0, 1, 2] * 2)
    path = attempt.folder / "x.parquet"
    for columns in (("image", "image", "label"), ("image", "label", "label")):
        arrays = [images if name == "image" else labels for name in columns]
        parquet.write_table(arrow.Table.from_arrays(arrays, names=columns), path)
        assert attempt.read(lambda: opened(path), DatasetError, path.name, lambda found: False) is None


def test_names_of_folders_and_pictures(attempt: Attempts, tried):
    """With and without a label file that has these names too."""
    names = [
        name
        for name in NAMES
        if "/" not in name and "\0" not in name and name.strip(".") and name.isascii() and len(name) < 250
    ]
    names += [
        "0",
        "1",
        "2",
        "00",
        "1.png",
        "\n.png",
        "a b.png",
        "\udcff.png",
        "\x1b[2J.PNG",
        "x,y.png",
        ".png",
        "9" * 30,
    ]
    folder, labels = attempt.folder / "data", attempt.folder / "labels.txt"

    def one(drawn: tuple[list[tuple[str, str]], list[str], bool]) -> None:
        places, lines, labeled = drawn
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        for inside, name in places:
            place = folder / os.fsdecode(os.fsencode(inside))
            if not place.is_file():
                place.mkdir(exist_ok=True)
                if not (place / name).is_dir():
                    (place / name).write_bytes(FOLDERS["0/0.png"])
        labels.write_bytes("\n".join(f"{line} 1" for line in lines).encode(errors="surrogateescape"))
        given = (labels if labeled else None, CLASSES)
        attempt.read(lambda: facts(open_dataset(folder, *given)), DatasetError, "", lambda found: True, WARNS)

    one(([("0", "1.png"), ("1", "1.png"), ("2", "1.png")], [], False))
    pairs = st.tuples(st.sampled_from([".", *names]), st.sampled_from(names))
    every(st.tuples(st.lists(pairs, max_size=4), st.lists(st.sampled_from(names), max_size=4), st.booleans()), 80, one)
    attempt.check()
    tried("folders: names of classes and pictures", attempt.counts)


def test_a_sound_archive_is_equal(attempt: Attempts):
    """That the trials can say so."""
    one = trial(attempt, "x.tar", TARS["folders"])
    one(TARS["folders"])
    one(write_tar(attempt.folder / "y.tar", dict(reversed(FOLDERS.items()))).read_bytes())
    assert attempt.counts == {"refused": 0, "equal": 1, "other": 1}
