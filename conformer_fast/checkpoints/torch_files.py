"""What torch.save writes: a zip file or, before PyTorch 1.6, pickles one after another. Nothing in it is run."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Collection
from io import BufferedReader, BytesIO
from typing import Any

import torch

from ..errors import CheckpointError, first_few, shown
from .pickled import Left, Named, unpickle
from .saved import ByteOrder, Saved, Storage, damaged

ZIP_MAGIC = b"PK\x03\x04"
MOST_DIMENSIONS = 64  # as PyTorch has it
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that is no zip
LOCAL_HEADER = struct.Struct("<4s22x2H")  # of a zip's entry: its mark, and the lengths of its name and its extra field
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
STORAGES = {
    f"{kind}Storage": dtype
    for kind, dtype in {
        "Untyped": torch.uint8,
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "QInt8": torch.int8,  # quantized, from here on: as large as these
        "QUInt8": torch.uint8,
        "QInt32": torch.int32,
        "QUInt4x2": torch.uint8,
        "QUInt2x4": torch.uint8,
    }.items()
}
REBUILD = "torch._utils._rebuild_"  # how the names of what makes PyTorch's tensors begin, dense or not
TENSORS = ("torch._tensor.Tensor", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
NOT_OURS = {  # an entry of another kind of zip file: what it is, and what to do
    "constants.pkl": "a TorchScript program, and code in a checkpoint is never run. Load it with torch.jit.load and "
    "save its tensors: torch.save(program.state_dict(), 'weights.pth')",
    "archive_format": "a program of torch.export (.pt2), and code in a checkpoint is never run. Load it with "
    "torch.export.load and save its tensors: torch.save(program.state_dict, 'weights.pth')",
}
NOT_OURS["serialized_exported_program.json"] = NOT_OURS["archive_format"]  # in older PyTorch's, in no folder

METADATA = frozenset(
    (  # What training programs put beside the weights. Each is answered with Left, so none of their code runs.
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.complex",
        "builtins.frozenset",
        "builtins.getattr",
        "builtins.set",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "functools.partial",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
        ),
        *(
            f"{module}.{pure}{system}Path"
            for module in ("pathlib", "pathlib._local")
            for pure in ("", "Pure")
            for system in ("Posix", "Windows")
        ),
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch.serialization._get_layout",
        "types.SimpleNamespace",
    )
)


def read_zip(file: BufferedReader) -> Any:
    """The content of a zip file of torch.save: its tensors are `Saved`, what is no plain value is Left or Named.

    Raises CheckpointError when it is another zip file or needs code to load.
    """
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
    entries = {entry.filename.partition("/")[2]: entry for entry in listed}
    _refuse_others(entries, [entry.filename for entry in listed])
    # torch stores its entries uncompressed, so entries that grow when read were not written by torch.
    if sum(entry.file_size for entry in listed) > os.fstat(file.fileno()).st_size:
        raise CheckpointError("a zip file whose entries are larger than the file, which torch never writes")
    big = "byteorder" in entries and _entry(file, entries["byteorder"]) == b"big"

    def stored(identity: Any) -> Storage:
        dtype, key = _storage(identity)
        entry = entries[f"data/{key}"]
        return Storage(dtype, _position(file, entry), entry.file_size, "big" if big else "little")

    return unpickle(BytesIO(_entry(file, entries["data.pkl"])), _made, stored)


def read_legacy(file: BufferedReader) -> Any:
    """The same for a file that is no zip. It has five pickles: a mark, a version, the system, the content and the keys
    of its storages. Each storage follows, after the number of its elements in eight bytes."""
    storages: dict[str, Storage] = {}

    def stored(identity: Any) -> Storage | Named:
        if isinstance(identity, tuple) and identity[0] == "module":  # a class, and its source
            return Named("a module's class")
        dtype, key = _storage(identity)
        return storages.setdefault(key, Storage(dtype))

    mark, _, system, content, keys = (unpickle(file, _made, stored) for _ in range(5))
    if mark != MAGIC:
        raise damaged("torch.save did not write it")
    order: ByteOrder = "little" if system["little_endian"] else "big"
    position = file.tell()
    for key in keys:
        file.seek(position)
        numel = int.from_bytes(file.read(8), order)
        storage = storages[key]
        storage.position, storage.nbytes, storage.order = position + 8, numel * storage.dtype.itemsize, order
        position = storage.position + storage.nbytes
    return content


def _refuse_others(entries: Collection[str], names: list[str]) -> None:
    for entry, what in NOT_OURS.items():
        if entry in entries or entry in names:
            raise CheckpointError(what)
    if "data.pkl" not in entries:
        numpy = any(name.endswith(".npy") for name in names)
        what = "NumPy's arrays (.npz)" if numpy else f"a zip file, but not PyTorch's ({first_few(names)})"
        raise CheckpointError(f"{what}; give the state dict as torch.save or safetensors write it")


def _entry(file: BufferedReader, entry: zipfile.ZipInfo) -> bytes:
    file.seek(_position(file, entry))
    return file.read(entry.file_size)


def _position(file: BufferedReader, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin: behind a header of its own, whose extra field differs from the directory's."""
    file.seek(entry.header_offset)
    mark, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if mark != ZIP_MAGIC or entry.compress_type != zipfile.ZIP_STORED:
        raise damaged("a zip file that torch did not write")
    return entry.header_offset + LOCAL_HEADER.size + name + extra


def _storage(identity: Any) -> tuple[torch.dtype, str]:
    """The dtype of a storage's elements and its key, from the id under which it was saved."""
    whole = isinstance(identity, tuple) and identity[5:] in ((), (None,))  # parts of a storage: until PyTorch 0.4
    kind, storage, key = identity[:3] if whole else (None, None, None)
    if kind != "storage" or not (isinstance(storage, Named) and isinstance(key, str)):
        raise damaged("it saves something else than tensors outside its pickle")
    return STORAGES[storage.name.rpartition(".")[2]], key


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What stands for the call of `name` in a pickle. Raises CheckpointError for what is not known.

    Arguments are never copied: a short pickle can name long ones again and again.
    """
    if name == "collections.OrderedDict" and not arguments:  # Python 2 gave it pairs
        return {}
    if name in (f"{REBUILD}parameter", f"{REBUILD}parameter_with_state"):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        rebuild, kind, parts, _ = arguments
        return _made(rebuild.name, parts) if kind.name in TENSORS else Left(f"{REBUILD}{kind.name}")
    if name in (f"{REBUILD}tensor", f"{REBUILD}tensor_v2", f"{REBUILD}tensor_v3") and len(arguments) <= 8:
        return _tensor(*arguments)
    if name in METADATA or name.startswith(REBUILD):
        return Left(name)
    raise CheckpointError(
        f"needs code to load ({shown(name)}), and code in a checkpoint is never run. If you trust the file, save its "
        "tensors alone in the program that wrote it: torch.save(model.state_dict(), 'weights.pth')"
    )


def _tensor(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> Saved | Left:
    """rest: whether it is trained and its hooks, in v3 its dtype, and what is special about it, if anything is."""
    named = rest[2] if len(rest) > 2 and isinstance(rest[2], Named) else None
    special = rest[3:] if named else rest[2:]
    sized = all(isinstance(sizes, tuple) and len(sizes) <= MOST_DIMENSIONS for sizes in (shape, stride))
    if not (sized and isinstance(storage, Storage)) or any(special) or (named and named.name not in DTYPES):
        return Left(f"{REBUILD}tensor")
    return Saved(storage, DTYPES[named.name] if named else storage.dtype, shape, stride, offset)
