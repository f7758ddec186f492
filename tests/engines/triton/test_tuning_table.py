"""Offline tuning: the user's table on disk."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_checks import DEVICE
from tuning_samples import BAD, FAST, GPU, RULE, SLOW

import conformer_fast as cf
from conformer_fast.engines.triton import tuning
from conformer_fast.engines.triton.tuning import Tuned, load, save
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.dispatch import PYTORCH
from conformer_fast.kernels.launch import Plan
from conformer_fast.kernels.tiles import Tile
from conformer_fast.storage.hashed import HashedFile

pytestmark = pytest.mark.usefixtures("folder")


def tuned(problem: str = "linear fp16 M6", choice=FAST, **seconds: float) -> Tuned:
    return Tuned(problem, RULE, choice, {RULE: 2e-6, choice: 1e-6}, {BAD: "RuntimeError: too large"})


def test_the_table_keeps_what_was_measured(folder):
    assert load(GPU) == {}
    file = save(GPU, [tuned("a"), tuned("b", PYTORCH), replace(tuned("c"), choice=RULE)])
    assert file == folder / dispatch.file_name(GPU) == tuning.table_file(GPU)
    assert load(GPU) == {"a": FAST, "b": PYTORCH, "c": RULE}
    table = json.loads(file.read_text())
    assert (table["gpu"], table["torch"], table["conformer_fast"]) == (GPU, torch.__version__, cf.__version__)
    assert table["triton"]
    assert table["times_us"]["a"] == {"64x64x32 w4 s3": 2.0, "32x64x32 w4 s3": 1.0}
    assert table["dropped"]["b"] == {"256x64x32 w4 s3": "RuntimeError: too large"}
    assert "[32, 64, 32, 4, 3]" in file.read_text()
    assert sorted({path.suffix for path in folder.iterdir()} - {".lock"}) == [".hash", ".json"]


def test_later_measurements_are_added_and_replace_the_same_problems():
    save(GPU, [tuned("a"), tuned("b")])
    save(GPU, [tuned("b", PYTORCH), tuned("c", SLOW)])
    save("another GPU", [tuned("d")])
    assert load(GPU) == {"a": FAST, "b": PYTORCH, "c": SLOW}
    assert load("another GPU") == {"d": FAST}


def test_nothing_is_lost_when_several_save_at_once():
    threads = [threading.Thread(target=save, args=(GPU, [tuned(f"problem {index}")])) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load(GPU)) == 12


def test_a_write_that_fails_leaves_the_old_table(folder, monkeypatch):
    save(GPU, [tuned("a")])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        save(GPU, [tuned("b")])
    assert load(GPU) == {"a": FAST}
    assert not [*folder.glob("*.part")]


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **fields}).encode()


FOREIGN = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "no table": lambda content: b"[1, 2]",
    "not text": lambda content: b"\xff",
    "no times": changed(times_us=3),
    "foreign choice": changed(choices={"a": "cublas"}),
    "another GPU's": changed(gpu="NVIDIA Z1"),
    "a strange GPU's": changed(gpu="\x1b[2J\n" * 5000),
    "another Triton's": changed(triton="2.0.0"),
    "another PyTorch's": changed(torch="1.0.0"),
    "older": changed(conformer_fast="0.0.1"),
    "not a number": changed(times_us={"a": {"pytorch": float("nan")}}),
    "deep": lambda content: content.replace(b"{", b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b", ", 1),
    "larger than any": lambda content: content + b" " * dispatch.LIMIT_BYTES,
}


@pytest.mark.parametrize("hashed", [True, False], ids=["written so", "damaged"])
@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_table_that_cannot_be_used_is_a_warning_and_is_replaced(change, hashed):
    file = save(GPU, [tuned("a")])
    content = change(file.read_bytes())
    if hashed:
        HashedFile(file).write(content)
    else:
        file.write_bytes(content)
    with pytest.warns(UserWarning, match="conformer-fast tune") as caught:
        tuning.use_user_table(torch.device(DEVICE))
    assert len(caught) == 1
    assert str(file) in str(caught[0].message)
    assert str(caught[0].message).isprintable()
    assert len(str(caught[0].message)) < 1000
    assert dispatch.table(GPU) == {}
    save(GPU, [tuned("b")])
    assert load(GPU) == {"b": FAST}


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("suffix", ["", ".hash"], ids=["table", "hash"])
def test_a_pipe_in_its_place_holds_nothing_up(suffix):
    file = save(GPU, [tuned("a")])
    place = file.with_name(file.name + suffix)
    place.unlink()
    os.mkfifo(place)
    with pytest.warns(UserWarning, match=rf"{file} is damaged; `conformer-fast tune` makes a new one"):
        assert load(GPU) == {}


def test_strange_names_and_tiles_that_no_kernel_has_run_nothing():
    """They stand in the table and are not launched: whatever runs is one of the plan's tiles, or PyTorch."""
    tile = Tile(1 << 40, 0, -1, 10**9, 3)
    save(GPU, [tuned("a", tile), tuned("../\x1b[2J" * 100, tile)])
    tuning.use_user_table(torch.device(DEVICE))
    plan = Plan("a", None, (RULE, FAST), launch=lambda tile: tile)
    choice, reason = dispatch.choose(plan, GPU)
    assert choice == RULE
    assert "no longer has the tuned" in reason


def test_a_warning_says_which_version_is_another():
    file = save(GPU, [tuned("a")])
    HashedFile(file).write(changed(triton="2.0.0")(file.read_bytes()))
    with pytest.warns(UserWarning, match=r"measured with triton 2\.0\.0, here is "):
        load(GPU)


def test_a_choice_that_was_changed_is_not_used():
    """The table is JSON and would be read."""
    file = save(GPU, [tuned("a")])
    file.write_bytes(changed(choices={"a": "pytorch"})(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{file} is damaged; `conformer-fast tune` makes a new one"):
        assert load(GPU) == {}


def test_a_table_that_was_copied_without_its_hash_is_a_warning():
    file = save(GPU, [tuned("a")])
    file.with_name(f"{file.name}.hash").unlink()
    with pytest.warns(UserWarning, match=rf"{file} has no {file.name}\.hash beside it"):
        assert load(GPU) == {}


def test_a_table_that_ships_is_added_to(tmp_path):
    """One without a hash beside it, as the GPU suite writes them."""
    first = tuning.with_added(None, GPU, [tuned("a")])
    second = tuning.with_added(first, GPU, [tuned("b", PYTORCH)])
    (tmp_path / "table.json").write_bytes(second)
    assert dispatch.read_table(tmp_path / "table.json") == {"a": FAST, "b": PYTORCH}
    of_others = changed(triton="2.0.0")(second)
    assert tuning.with_added(of_others, GPU, [tuned("a")]) == first


def test_a_table_that_may_not_be_read_is_a_warning(folder):
    file = save(GPU, [tuned("a")])
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="not used"):
        assert load(GPU) == {}


def test_the_users_table_is_used_beside_what_is_already():
    dispatch.use_table(GPU, {"a": SLOW, "b": SLOW})
    save(GPU, [tuned("a")])
    tuning.use_user_table(torch.device(DEVICE))
    assert dispatch.table(GPU) == {"a": FAST, "b": SLOW}


def test_a_folder_that_is_given_needs_no_package_to_find_it(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "platformdirs", None)  # importing it raises ImportError
    assert tuning.table_file(GPU).parent == folder
    monkeypatch.delenv("CONFORMER_FAST_CACHE")
    with pytest.raises(ImportError):
        tuning.table_file(GPU)
