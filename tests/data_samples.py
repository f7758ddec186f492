"""Small data sets of gray pictures, in every form, and what the tests ask of them."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image

from conformer_fast.datasets.dataset import Dataset, PictureSet, open_dataset
from conformer_fast.errors import DatasetError


def picture(shade: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A gray picture's file."""
    file = io.BytesIO()
    Image.new(mode, (20, 10), (shade,) * len(mode)).save(file, kind)
    return file.getvalue()


def shade(dataset: PictureSet, index: int) -> int:
    return Image.open(io.BytesIO(dataset.read(index))).convert("RGB").getpixel((3, 3))[0]


def write(folder, contents: dict[str, bytes]):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(file, contents: dict[str, bytes | None], mode: str = "w"):
    """None: a folder."""
    with tarfile.open(file, mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return file


def found(dataset: Dataset) -> dict[str, int]:
    return dict(zip((picture.name for picture in dataset.pictures), dataset.labels, strict=True))


def refused(*arguments) -> str:
    with pytest.raises(DatasetError) as error:
        open_dataset(*arguments)
    return str(error.value)


def write_parquet(file, rows, labels, group: int = 5, names: list[str] | None = None, compression: str = "snappy"):
    """names: what the labels are called, as Hugging Face writes it."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    images = arrow.array([{"bytes": row, "path": "x.jpg"} for row in rows], kind)
    table = arrow.table({"image": images, "label": arrow.array(labels)})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, file, row_group_size=group, compression=compression)
    return file
