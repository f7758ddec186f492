"""What the engine does for TensorRT-RTX alone: streams of its own, and its compiled kernels kept on disk."""

import json
from pathlib import Path

import pytest
import torch
from executor_samples import equal, images
from fake_tensorrt import TensorRT
from tensorrt_samples import call_under_way, engine_of, lanes

from conformer_fast.engines.tensorrt import engine as engine_module
from conformer_fast.engines.tensorrt.kernel_cache import RuntimeCacheFile
from conformer_fast.errors import EngineError


@pytest.fixture
def rtx(cuda) -> TensorRT:
    """A pretended one."""
    return TensorRT(cuda, "tensorrt-rtx")


def test_rtx_runs_on_a_stream_of_the_lane_that_the_callers_waits_for(rtx, cuda):
    """On the default stream TensorRT would wait on the host, and could record nothing."""
    engine, batch = engine_of(rtx), images(2, 3, 16, 16)
    engine(batch)
    mine = torch.cuda.Stream()
    cuda.log.clear()
    with torch.cuda.stream(mine):
        engine(batch)
    assert cuda.log == [("wait", mine), ("done", mine)]
    streams = {stream for _, stream in rtx.runs}
    assert len(streams) == 1
    assert mine not in streams
    (memory,) = lanes(cuda)
    assert mine.after[memory] == len(rtx.runs) == 4
    assert not cuda.streams("graph")


def test_rtx_never_runs_on_streams_that_record(rtx, cuda):
    for _ in range(40):  # more than PyTorch has streams
        engine_of(rtx)(images(1, 3, 16, 16))
    assert not {stream for _, stream in rtx.runs} & {torch.cuda.Stream(priority=-1) for _ in range(100)}


@pytest.mark.parametrize("call", ["config", "set cache"])
def test_what_rtx_refuses(call, rtx):
    engine = engine_of(rtx)
    rtx.refuse[call] = "Error Code 7: the reason"
    with pytest.raises(EngineError, match="Error Code 7: the reason"):
        engine(images(1, 3, 16, 16))


def test_known_shape_that_fails_later(rtx):
    engine, batch = engine_of(rtx), images(1, 3, 16, 16)
    expected = engine(batch)
    rtx.refuse["execute"] = "Cuda Runtime (an illegal memory access)"
    with pytest.raises(EngineError, match="did not run"):
        engine(batch)
    rtx.refuse.clear()
    assert equal(engine(batch), expected)
    assert len(rtx.contexts) == 1


def kernels(folder: Path) -> list[str]:
    return json.loads((folder / "runtime.cache").read_bytes())["kernels"]


def test_kernels_are_kept_after_the_first_call_of_a_shape(rtx, tmp_path):
    engine = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    assert not (tmp_path / "runtime.cache").exists()
    engine(images(1, 3, 16, 16))
    assert kernels(tmp_path) == ["(1, 3, 16, 16)"]
    engine(images(2, 3, 16, 16))
    assert len(kernels(tmp_path)) == 2
    written = (tmp_path / "runtime.cache").stat().st_mtime_ns
    with call_under_way(engine, images(2, 3, 16, 16)):
        engine(images(2, 3, 16, 16))  # a new context, with nothing to compile
    assert len(rtx.contexts) == 3
    engine(images(1, 3, 16, 16))
    assert (tmp_path / "runtime.cache").stat().st_mtime_ns == written


def test_next_program_starts_with_the_kernels(rtx, tmp_path):
    engine_of(rtx, cache=RuntimeCacheFile(tmp_path))(images(1, 3, 16, 16))
    written = (tmp_path / "runtime.cache").stat().st_mtime_ns
    second = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    second(images(1, 3, 16, 16))
    assert (tmp_path / "runtime.cache").stat().st_mtime_ns == written
    third = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    third(images(2, 3, 16, 16))
    assert kernels(tmp_path) == ["(1, 3, 16, 16)", "(2, 3, 16, 16)"]  # also the one that it never ran


def test_kernels_for_another_gpu_are_replaced(rtx, tmp_path):
    file = RuntimeCacheFile(tmp_path)
    file.write(json.dumps({"gpu": "elsewhere", "kernels": ["x"]}).encode())
    engine_of(rtx, cache=file)(images(1, 3, 16, 16))
    assert kernels(tmp_path) == ["(1, 3, 16, 16)"]


def test_lanes_share_their_kernels_without_a_file_too(rtx, contexts):
    engine, batch = engine_of(rtx), images(1, 3, 16, 16)
    with call_under_way(engine, batch):
        engine(batch)
    one, two = contexts
    assert one.cache is two.cache is not None


def test_writes_are_bounded(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "CACHE_WRITES", 2)
    engine = engine_of(rtx, cache=RuntimeCacheFile(tmp_path))
    for B in (1, 2, 4):
        engine(images(B, 3, 16, 16))
    assert len(kernels(tmp_path)) == 2


def test_tensorrt_needs_no_such_file(cuda, tmp_path):
    engine_of(TensorRT(cuda), cache=RuntimeCacheFile(tmp_path))(images(1, 3, 16, 16))
    assert not list(tmp_path.iterdir())
