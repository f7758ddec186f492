"""CPU engines that several threads call."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

import conformer_fast as cf

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import openvino as ov
from openvino_engines import compiled, images

from conformer_fast.engines.openvino import engine as engine_module


def test_threads_share_the_engine_for_any_size(small_model, loaded, monkeypatch):
    monkeypatch.setattr(engine_module, "OWN_SIZES", 1)
    fast = compiled(small_model)
    batches = [images(2, 3, 32, width) for width in (16, 32, 48, 64)]
    serial = [fast(batch) for batch in batches]

    def work(index: int) -> bool:
        results = [fast(batches[index]) for _ in range(20)]
        return all(torch.equal(*pair) for result in results for pair in zip(result, serial[index], strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(loaded.sizes) == 2


def test_requests_are_used_again(small_model, monkeypatch):
    made, make = [], ov.CompiledModel.create_infer_request
    monkeypatch.setattr(ov.CompiledModel, "create_infer_request", lambda model: made.append(model) or make(model))
    fast = compiled(small_model, threads=2)
    batch = images(4, 3, 32, 32)
    for _ in range(5):
        fast(batch)
    assert len(made) == 2


@contextmanager
def giving_way() -> Iterator[None]:
    """Threads that start inside let others go on after every instruction of the engine's code, so that races happen."""

    def trace(frame, event, argument):
        if frame.f_code.co_filename != engine_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            time.sleep(0.001)
        return trace

    threading.settrace(trace)
    try:
        yield
    finally:
        threading.settrace(None)


def test_threads_never_take_the_same_request(small_model, monkeypatch):
    fast, batch = compiled(small_model, threads=2), images(2, 3, 32, 32)
    expected = fast(batch)
    used: dict[int, list] = defaultdict(list)
    begun, both = threading.Barrier(2), threading.Barrier(2)
    empty, start, met = torch.empty, ov.InferRequest.start_async, threading.local()

    def together(*shape, **options):
        if not hasattr(met, "here"):  # both threads make room for results, and go on to take requests
            met.here = begun.wait(20)
        return empty(*shape, **options)

    def noted(request):
        mine = used[threading.get_ident()]
        if not mine:
            both.wait(20)  # both threads have taken theirs and given none back
        mine.append(request)
        start(request)

    monkeypatch.setattr(torch, "empty", together)
    monkeypatch.setattr(ov.InferRequest, "start_async", noted)
    with giving_way(), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(fast, [batch, batch]))
    taken = [request for requests in used.values() for request in requests]
    assert len({id(request) for request in taken}) == len(taken) == 4
    assert all(map(torch.equal, [*results[0], *results[1]], [*expected, *expected]))


def test_one_size_is_built_once_for_many_threads(small_model, own_cache, builds, loaded):
    fast = compiled(small_model)
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        return fast(images(2, 3, 32, 32))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert len(builds) == len(loaded.engines) == 1
    assert all(torch.equal(*pair) for result in results[1:] for pair in zip(result, results[0], strict=True))


def test_a_built_size_does_not_wait_for_another_that_is_being_built(small_model, own_cache, monkeypatch):
    fast = cf.compile(small_model, backend="openvino", precision="fp32")
    small, large = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 64)
    fast(small)
    started, go_on = threading.Event(), threading.Event()
    load = ov.Core.import_model

    def slow(*arguments):
        started.set()
        assert go_on.wait(60)
        return load(*arguments)

    monkeypatch.setattr(ov.Core, "import_model", slow)
    with ThreadPoolExecutor(2) as pool:
        building = pool.submit(fast, large)
        try:
            assert started.wait(60)
            pool.submit(fast, small).result(timeout=20)  # would hang here if the builder held the look-up lock
            assert not building.done()
        finally:
            go_on.set()
        building.result()
