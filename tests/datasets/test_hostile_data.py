"""Files made to crash, to hang or to fill the memory: our error, soon, and within bounds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from data_samples import picture, refused, write, write_parquet, write_tar

from conformer_fast.datasets.dataset import open_dataset
from conformer_fast.errors import DatasetError, ImageError


def grown(megabytes: int, function, *arguments):
    """What a call returns, which may not take so much more memory at a time."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = function(*arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024
    return result


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tars_header_of_6_gib(tmp_path, kind):
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, 6 << 30
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(6 << 30)
    assert "a header of over 4194304 bytes" in grown(100, refused, tmp_path / "x.tar")


def test_a_tars_headers_without_end(tmp_path):
    """Each says that another one follows."""
    member = tarfile.TarInfo("x")
    member.type = tarfile.XHDTYPE
    (tmp_path / "x.tar").write_bytes(member.tobuf() * 20_000)
    assert "not a whole, uncompressed tar file" in refused(tmp_path / "x.tar")


def test_a_label_of_a_million_lines(tmp_path):
    lines = b"n01440764\n" * 100_000
    tar = write_tar(tmp_path / "x.tar", {"a.png": picture(1), "a.cls": lines})
    assert len(refused(tar, None, 1000)) < 500
    write(tmp_path / "data", {"a.png": picture(1)})
    for line, count in {"n01440764": 1_000_000, "absent.png 1": 50_000, "a.png 1": 50_000, "x" * 200: 50_000}.items():
        (tmp_path / "labels.txt").write_text(f"{line}\n" * count)
        assert len(refused(tmp_path / "data", tmp_path / "labels.txt", 1000)) < 2000


def test_a_label_file_without_end(tmp_path):
    write(tmp_path / "data", {"a.png": picture(1)})
    with open(tmp_path / "labels.txt", "wb") as file:
        file.truncate(6 << 30)
    assert "has over 268435456 bytes" in grown(100, refused, tmp_path / "data", tmp_path / "labels.txt")


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_parquet_bomb(tmp_path, dictionary):
    """Rows of zeros in some kilobytes, which ended the interpreter. Rows in other groups stay."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    zeros = arrow.array([{"bytes": bytes(40_000_000)}] * 2)
    file = tmp_path / "x.parquet"
    table = arrow.table({"image": zeros, "label": [0] * len(zeros)})
    with parquet.ParquetWriter(file, table.schema, use_dictionary=dictionary, compression="zstd") as writer:
        writer.write_table(arrow.table({"image": [{"bytes": picture(1)}], "label": [0]}, schema=table.schema))
        writer.write_table(table)
    del zeros, table
    dataset = open_dataset(file)
    with pytest.raises(ImageError, match=r"x\.parquet:1: damaged \(its \d+ rows would unpack to \d+ bytes"):
        grown(100, dataset.input, 1, 32)
    assert dataset.read(0) == picture(1)


def test_no_byte_of_a_parquet_footer_ends_the_interpreter(tmp_path):
    """pyarrow 26 ends it for a column whose statistics do not fit its schema."""
    file = write_parquet(tmp_path / "x.parquet", [picture(1)] * 2, [0, 1])
    script = Path(__file__).parents[1] / "damaged_footers.py"
    done = subprocess.run([sys.executable, script, file], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_more_rows_than_bytes(tmp_path):
    """Repeated numbers take no place in a parquet file."""
    count = 200_000
    file = write_parquet(tmp_path / "x.parquet", [b""] * count, [0] * count, group=count, compression="zstd")
    assert file.stat().st_size < 20_000
    assert "more rows than bytes" in refused(file)


def test_what_a_library_says_is_one_line(tmp_path):
    """Of parquet's parser it is three."""
    whole = write_parquet(tmp_path / "whole.parquet", [picture(1)] * 3, [0, 1, 2]).read_bytes()
    (tmp_path / "x.parquet").write_bytes(b"\0" + whole)  # every column is one byte behind
    text = refused(tmp_path / "x.parquet")
    assert "x.parquet: damaged (" in text
    assert text.isprintable()


def test_names_in_folders_and_label_files_are_shown_escaped(tmp_path):
    strange = "\x1b[2J\n.png"
    write(tmp_path / "data", {strange: picture(1), "0/a.png": picture(1)})
    assert r"first \x1b[2J\n.png; take them away" in refused(tmp_path / "data")
    write(tmp_path / "twice", {"0/\x1b.png": picture(1), "1/\x1b.png": picture(1)})
    (tmp_path / "labels.txt").write_text("\x1b.png 1\n0/\x1b.png 1\n")
    assert r"several pictures are called \x1b.png;" in refused(tmp_path / "twice", tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("0/\x1b.png 1\n0/\x1b.png 1\n")
    assert r"0/\x1b.png has a label already" in refused(tmp_path / "twice", tmp_path / "labels.txt")


def test_columns_are_shown_in_short(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({f"\x1b[2J\n{index}": [1] for index in range(5000)}), tmp_path / "x.parquet")
    text = refused(tmp_path / "x.parquet")
    assert text.isprintable()
    assert len(text) < 1000


def test_names_of_a_tars_pictures_are_shown_in_short(tmp_path):
    name = f"0/{chr(27)}[2J{'x' * 5000}.png"
    dataset = open_dataset(write_tar(tmp_path / "x.tar", {name: b"no picture"}))
    with pytest.raises(ImageError, match=r"^0/\\x1b\[2Jx+\.\.\.: empty, damaged") as error:
        dataset.input(0, 32)
    assert len(str(error.value)) < 400


def test_any_damaged_byte_of_a_parquet_file_is_our_error(tmp_path):
    """Each byte of the labels' column and of what describes the file."""
    whole = write_parquet(tmp_path / "whole.parquet", [picture(1)] * 3, [0, 1, 2], compression="none").read_bytes()
    file = tmp_path / "x.parquet"
    errors = 0
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            dataset = open_dataset(file, num_classes=3)
            for index in range(len(dataset)):
                dataset.input(index, 32)
        except (DatasetError, ImageError):
            errors += 1
    assert errors > len(whole) / 3 / 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_what_is_no_file_is_refused_at_once(tmp_path, name):
    pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / name)
    assert "a pipe or a device, no regular file" in refused(tmp_path / name)
    (tmp_path / f"zero{name}").symlink_to("/dev/zero")
    assert "a pipe or a device, no regular file" in refused(tmp_path / f"zero{name}")
    (tmp_path / f"folder.{name}").mkdir()
    assert "no pictures" in refused(tmp_path / f"folder.{name}")
    write(tmp_path / "data", {"a.png": picture(1)})
    assert "label file cannot be read (a pipe or a device" in refused(tmp_path / "data", tmp_path / name)
    assert "label file cannot be read (Is a directory" in refused(tmp_path / "data", tmp_path)


def test_a_nul_in_a_name(tmp_path):
    write(tmp_path, {"a.png": picture(1)})
    assert "no file or folder" in refused(f"{tmp_path}/x\0.tar")
    assert re.search(r"cannot be read \(.*embedded null", refused(tmp_path, "labels\0.txt"))
