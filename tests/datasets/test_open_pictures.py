"""Pictures without labels, from a folder, tar and parquet files: all are found, in the order of a data set."""

from __future__ import annotations

import pytest
from data_samples import picture, refused, shade, write, write_parquet, write_tar

from conformer_fast.datasets.dataset import PictureSet, open_pictures
from conformer_fast.errors import DatasetError


def names(pictures: PictureSet) -> list[str]:
    return [one.name for one in pictures.pictures]


def test_pictures_of_a_folder_need_no_labels(tmp_path):
    """Of any depth, and beside folders that have some."""
    contents = {name: picture(number) for number, name in enumerate(("b/c/2.png", "1.png", "b/10.png", "b/9.png"))}
    pictures = open_pictures(write(tmp_path, contents))
    assert names(pictures) == ["1.png", "b/10.png", "b/9.png", "b/c/2.png"]
    assert (pictures.source, pictures.kind, len(pictures)) == (str(tmp_path), "folder", 4)
    assert [shade(pictures, index) for index in range(4)] == [1, 2, 3, 0]


def test_pictures_of_tar_files_need_no_labels(tmp_path):
    """What stands beside them may be anything, also in the form of a label that is none."""
    contents = {"b.png": picture(1), "b.cls": b"\xff", "b.json": b"[", "x/a.png": picture(2), "x/a.json": b'{"a": 1}'}
    assert "is no label" in refused(write_tar(tmp_path / "x.tar", contents))
    pictures = open_pictures(tmp_path / "x.tar")
    assert (names(pictures), pictures.kind) == (["b.png", "x/a.png"], "tar")
    assert [shade(pictures, index) for index in range(2)] == [1, 2]
    write_tar(tmp_path / "y.tar", {"b.png": picture(3)})
    assert names(open_pictures(tmp_path)) == ["x.tar/b.png", "x.tar/x/a.png", "y.tar/b.png"]
    (tmp_path / "below" / "further").mkdir(parents=True)
    write_tar(tmp_path / "below" / "further" / "z.tar", {"c.png": picture(4)})
    assert names(open_pictures(tmp_path / "**" / "[yz].tar")) == ["z.tar/c.png", "y.tar/b.png"]


def test_pictures_of_parquet_files_need_no_labels(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [picture(number) for number in range(7)]
    parquet.write_table(arrow.table({"image": rows}), tmp_path / "a.parquet", row_group_size=3)
    write_parquet(tmp_path / "b.parquet", rows[:2], [None, 9])
    assert "needs the columns 'image' and a whole number 'label'" in refused(tmp_path / "a.parquet")
    pictures = open_pictures(tmp_path)
    assert names(pictures) == [*(f"a.parquet:{row}" for row in range(7)), "b.parquet:0", "b.parquet:1"]
    assert [shade(pictures, index) for index in range(9)] == [*range(7), 0, 1]
    parquet.write_table(arrow.table({"pixels": rows}), tmp_path / "c.parquet")
    with pytest.raises(DatasetError, match=r"c\.parquet: needs the column 'image', has pixels \(binary\)"):
        open_pictures(tmp_path)


def test_no_pictures_without_labels(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"has no pictures, but a\.zip: unpack"):
        open_pictures(tmp_path)
    with pytest.raises(DatasetError, match="there is no file or folder"):
        open_pictures(tmp_path / "absent")


def test_the_digest_of_pictures_tells_them_apart(tmp_path):
    contents = {"a.png": picture(1), "b.png": picture(2)}
    digest = open_pictures(write(tmp_path / "one", contents)).sha256()
    assert open_pictures(write(tmp_path / "two", contents)).sha256() == digest
    for place, more in {"more": {"c.png": picture(3)}, "longer": {"a.png": picture(1) + b" "}}.items():
        assert open_pictures(write(tmp_path / place, contents | more)).sha256() != digest
