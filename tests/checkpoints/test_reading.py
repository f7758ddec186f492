"""What a checkpoint holds, and what is left alone in it. Damaged and hostile ones are in test_reading_unsafe."""

import sys
import types

import numpy as np
import pytest
import torch
from weights_samples import REFERENCE, STATES

from conformer_fast.checkpoints.reading import read_state_dict
from conformer_fast.errors import CheckpointError


def test_ema_is_refused_where_there_is_none(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(REFERENCE.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"bare\.pth: holds no model_ema"):
        read_state_dict(path, ema=True)


def test_a_training_frameworks_log_is_skipped_and_its_code_not_run(tmp_path, monkeypatch):
    class HistoryBuffer:
        restored = False

        def __init__(self, values):
            self.values = np.array(values)

        def __setstate__(self, state):
            HistoryBuffer.restored = True

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "epoch_300.pth"
    torch.save({"state_dict": STATES["mmpretrain"], "message_hub": {"loss": HistoryBuffer([1.0, 2.0])}}, path)
    assert read_state_dict(path).keys() == STATES["mmpretrain"].keys()
    assert not HistoryBuffer.restored


def test_what_is_read_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(REFERENCE.state_dict(), path)
    state = read_state_dict(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(state["cls_token"], REFERENCE.cls_token)
