"""Checkpoints that are damaged, or made to run code, to fill the memory or to be taken for others."""

from __future__ import annotations

import io
import json
import pickletools
import struct
from collections.abc import Mapping

import pytest
import safetensors.torch
import torch
from archive_damage import broken_pickle, broken_zip, canary, unzipped, zipped
from attempts import Attempts, every
from damage import broken, broken_json, flipped, poisoned
from hypothesis import strategies as st
from torch import Tensor

import conformer_fast as cf
from conformer_fast.checkpoints.metadata import KEY
from conformer_fast.checkpoints.reading import read_checkpoint, read_state_dict
from conformer_fast.checkpoints.weights import load_weights
from conformer_fast.errors import CheckpointError

pytestmark = pytest.mark.slow

STATE = {
    "cls_token": torch.arange(24.0).view(1, 1, 24),
    "matrix": torch.arange(6, dtype=torch.float16).view(2, 3).t(),
    "view": torch.arange(30.0)[5:9],
    "counter": torch.tensor(7),
    "flag": torch.tensor([True, False]),
    "empty": torch.empty(0, 4),
}
RECIPE = cf.Recipe(size=64, num_heads=2, labels=("cat", "dog"), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
DTYPES = [f'"{name}"' for name in ("F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64")]


def saved(zipped: bool, state: object = STATE) -> bytes:
    file = io.BytesIO()
    torch.save({"model": state, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def with_metadata(state: Mapping[str, Tensor] = STATE, recipe: cf.Recipe = RECIPE) -> bytes:
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(whole, {KEY: json.dumps(recipe.known())})


def header(content: bytes) -> tuple[dict, bytes]:
    """Of a safetensors file: what it says, and the values behind it."""
    end = 8 + struct.unpack_from("<Q", content)[0]
    return json.loads(content[8:end]), content[end:]


def with_header(text: str, rest: bytes, longer: int = 0) -> bytes:
    data = text.encode(errors="surrogatepass")
    return struct.pack("<Q", max(0, len(data) + longer)) + data + rest


FILES = {
    "zip": (saved(True), "x.pth"),
    "legacy": (saved(False), "x.pth"),
    "safetensors": (with_metadata(), "x.safetensors"),
}


def equal(state: dict[str, Tensor]) -> bool:
    """Whether it is STATE. Whatever is read are tensors that lie in memory of their own, as large as they say."""
    for name, tensor in state.items():
        assert type(name) is str
        assert type(tensor) is Tensor
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    if state.keys() != STATE.keys():
        return False
    return all(tensor.dtype == STATE[name].dtype and torch.equal(tensor, STATE[name]) for name, tensor in state.items())


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes(kind, attempt: Attempts, tried):
    content, name = FILES[kind]
    other = FILES["legacy" if kind == "zip" else "zip"][0]

    def one(damaged: bytes) -> None:
        path = attempt.write(name, damaged)
        attempt.read(lambda: read_state_dict(path), CheckpointError, path, equal)

    one(content)
    values = content.index(STATE["cls_token"].numpy().tobytes())  # nothing protects them
    every(st.one_of(broken(content, other), flipped(content, range(values, values + 96))), 120, one)
    attempt.check()
    tried(f"checkpoints ({kind}): bytes changed", attempt.counts)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_pickles_that_run_code(kind, attempt: Attempts, tried):
    """Opcodes changed, calls put in: the file that these would write is never there."""
    content = FILES[kind][0]
    pieces = canary(str(attempt.folder / "canary"))
    entries = unzipped(content) if kind == "zip" else []
    pickled = next((inside for name, inside in entries if name.endswith("data.pkl")), content)

    def one(damaged: bytes) -> None:
        if kind == "zip":
            file = zipped([(name, damaged if inside is pickled else inside) for name, inside in entries])
        else:
            file = damaged
        path = attempt.write("x.pth", file)
        attempt.read(lambda: read_state_dict(path), CheckpointError, path, equal)

    every(broken_pickle(pickled, pieces) if kind == "zip" else _of_legacy(content, pieces), 120, one)
    attempt.check()
    tried(f"checkpoints ({kind}): opcodes changed, calls put in", attempt.counts)


def _of_legacy(content: bytes, pieces: list[bytes]) -> st.SearchStrategy[bytes]:
    """The fourth of its pickles is the content."""
    ends, start = [], 0
    for _ in range(5):
        file = io.BytesIO(content[start:])
        for _ in pickletools.genops(file):
            pass
        start += file.tell()
        ends.append(start)
    before, pickled, behind = content[: ends[2]], content[ends[2] : ends[3]], content[ends[3] :]
    return broken_pickle(pickled, pieces).map(lambda damaged: before + damaged + behind)


def test_zip_entries(attempt: Attempts, tried):
    def one(damaged: bytes) -> None:
        path = attempt.write("x.pth", damaged)
        attempt.read(lambda: read_state_dict(path), CheckpointError, path, equal)

    every(broken_zip(FILES["zip"][0]), 80, one)
    attempt.check()
    tried("checkpoints (zip): entries and sizes changed", attempt.counts)


def test_headers_of_safetensors(attempt: Attempts, tried):
    """Tensors that overlap, go beyond the file, or have another type."""
    says, rest = header(FILES["safetensors"][0])

    def one(damaged: bytes) -> None:
        path = attempt.write("x.safetensors", damaged)
        attempt.read(lambda: read_state_dict(path), CheckpointError, path, equal)

    one(FILES["safetensors"][0])
    texts = broken_json(says, DTYPES)
    every(st.builds(with_header, texts, st.just(rest), st.sampled_from((0, 0, 0, 0, 1, -1, 8))), 100, one)
    attempt.check()
    tried("checkpoints (safetensors): headers changed", attempt.counts)


def test_recipes_in_safetensors(attempt: Attempts, tried, small_model):
    says, rest = header(with_metadata(small_model.state_dict()))

    def one(recipe: str) -> None:
        says["__metadata__"][KEY] = recipe
        try:
            content = with_header(json.dumps(says), rest)
        except UnicodeEncodeError:
            return
        path = attempt.write("x.safetensors", content)
        attempt.read(lambda: read_checkpoint(path).recipe, CheckpointError, path, lambda found: found == RECIPE)

    one(json.dumps(RECIPE.known()))
    every(broken_json(RECIPE.known()), 80, one)
    attempt.check()
    tried("checkpoints (safetensors): what it says of its model changed", attempt.counts)


def test_shards_and_their_index(attempt: Attempts, tried):
    names = sorted(STATE)
    shards = {"1.safetensors": names[:3], "2.safetensors": names[3:]}
    folder = attempt.folder / "model"
    folder.mkdir()
    for name, held in shards.items():
        attempt.write(f"model/{name}", safetensors.torch.save({one: STATE[one].contiguous() for one in held}))
    elsewhere = attempt.write("elsewhere.safetensors", safetensors.torch.save({one: torch.zeros(1) for one in names}))
    paths = [json.dumps(name) for name in ("../elsewhere.safetensors", str(elsewhere), "2.safetensors")]
    places = {one: name for name, held in shards.items() for one in held}
    index = {"metadata": {"total_size": 9}, "weight_map": places}

    def one(text: str) -> None:
        path = attempt.write("model/x.safetensors.index.json", text.encode(errors="surrogatepass"))

        def of_the_folder(state: dict[str, Tensor]) -> bool:
            assert all(torch.equal(tensor, STATE[one]) for one, tensor in state.items()), "read from elsewhere"
            return equal(state)

        attempt.read(lambda: read_state_dict(path), CheckpointError, path, of_the_folder)

    every(broken_json(index, paths), 80, one)
    attempt.check()
    tried("checkpoints (shards): the index changed", attempt.counts)


def _poisoned(content: bytes, start: int, end: int) -> st.SearchStrategy[bytes]:
    """Its floats there are NaN, infinite, negative or huge in one place."""
    return poisoned(content[:end], start).map(lambda damaged: damaged + content[end:])


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_a_model_takes_all_or_nothing(kind, attempt: Attempts, tried, small_config, small_model):
    """Whatever is in the file: after a refusal every weight is as it was, after reading every weight is finite."""
    sound = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in sound.items()}
    content = saved(True, sound) if kind == "zip" else safetensors.torch.save(sound)
    name = FILES[kind][1]
    values = content.index(sound["conv1.weight"].numpy().tobytes()[:64])

    def one(damaged: bytes) -> None:
        path = attempt.write(name, damaged)
        load_weights(small_model, other)

        def same(expected: dict[str, Tensor]) -> bool:
            return all(torch.equal(tensor, expected[name]) for name, tensor in small_model.state_dict().items())

        def finite(_: object) -> bool:
            assert all(tensor.isfinite().all() for tensor in small_model.state_dict().values())
            return same(sound)

        if attempt.read(lambda: load_weights(small_model, path), CheckpointError, path, finite) is None:
            assert same(other)

    one(content)
    end = len(content) if kind == "safetensors" else values + 4 * sound["conv1.weight"].numel()
    every(st.one_of(broken(content), flipped(content, range(values, end)), _poisoned(content, values, end)), 30, one)
    attempt.check()
    tried(f"checkpoints ({kind}): a model's weights changed", attempt.counts)
