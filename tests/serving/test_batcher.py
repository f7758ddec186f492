"""What runs together, and when."""

import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch

from conformer_fast.serving.batcher import Batcher, StoppingError


class Engine:
    """Doubles images. It runs a batch when it is let, and tells of each."""

    def __init__(self, free=True):
        self.batches, self.may, self.began = [], threading.Semaphore(1000 if free else 0), threading.Semaphore(0)

    def __call__(self, images):
        self.batches.append(tuple(images.shape))
        self.began.release()
        self.may.acquire()
        return images * 2, images.flatten(1).sum(1)


@pytest.fixture
def batcher_of():
    made = []

    def make(engine, *args, **kwargs):
        workers = kwargs.pop("workers", 1)
        made.append((Batcher(engine, *args, **kwargs), engine))
        made[-1][0].start(workers)
        return made[-1][0]

    yield make
    for batcher, engine in made:
        if isinstance(engine, Engine):
            engine.may.release(1000)
        batcher.close(5)


def images(count, value=1.0, side=2):
    return torch.full((count, 3, side, side), value)


def test_a_client_alone_never_waits(batcher_of):
    engine = Engine()
    batcher = batcher_of(engine, 8, delay=60)
    for value in (1.0, 2.0):
        answer = batcher.submit(images(1, value)).result(5)
        assert torch.equal(answer.outputs[0], images(1, 2 * value))
        assert (answer.batch, engine.batches[-1]) == (1, (1, 3, 2, 2))
        assert answer.queued < 5


def test_what_comes_while_one_runs_goes_together_in_order(batcher_of):
    engine = Engine(free=False)
    batcher = batcher_of(engine, 4)
    futures = [batcher.submit(images(1, 0.0))]
    assert engine.began.acquire(timeout=5)
    futures += [batcher.submit(images(count, float(count))) for count in (1, 2, 2, 1)]
    assert batcher.waiting == 6
    engine.may.release(10)
    answers = [future.result(5) for future in futures]
    assert engine.batches == [(1, 3, 2, 2), (4, 3, 2, 2), (2, 3, 2, 2)]  # 1 + 2 + 1 fit, 2 more do not
    assert [answer.batch for answer in answers] == [1, 4, 4, 2, 4]
    for answer, count in zip(answers[1:], (1, 2, 2, 1), strict=True):
        assert torch.equal(answer.outputs[0], images(count, 2.0 * count))
        assert torch.equal(answer.outputs[1], torch.full((count,), 12.0 * count))


def test_images_of_another_shape_are_another_batch(batcher_of):
    engine = Engine(free=False)
    batcher = batcher_of(engine, 8)
    futures = [batcher.submit(images(1))]
    assert engine.began.acquire(timeout=5)
    futures += [batcher.submit(images(1, side=side)) for side in (2, 4, 2)]
    engine.may.release(10)
    assert [future.result(5).batch for future in futures] == [1, 2, 1, 2]


def test_images_of_another_type_are_another_batch(batcher_of):
    """Together, pixels would become floating point, as if they were normalized."""
    engine = Engine(free=False)
    batcher = batcher_of(engine, 8)
    futures = [batcher.submit(images(1))]
    assert engine.began.acquire(timeout=5)
    futures += [batcher.submit(images(1).to(dtype)) for dtype in (torch.float32, torch.uint8, torch.float32)]
    engine.may.release(10)
    answers = [future.result(5) for future in futures]
    assert [answer.batch for answer in answers] == [1, 2, 1, 2]
    assert answers[2].outputs[0].dtype == torch.uint8


def test_what_is_cancelled_is_left_out(batcher_of):
    engine = Engine(free=False)
    batcher = batcher_of(engine, 8)
    first = batcher.submit(images(1))
    assert engine.began.acquire(timeout=5)
    gone, stays = batcher.submit(images(3)), batcher.submit(images(1, 5.0))
    assert gone.cancel()
    assert batcher.waiting == 1
    assert not first.cancel()  # it runs
    engine.may.release(10)
    assert torch.equal(stays.result(5).outputs[0], images(1, 10.0))
    with pytest.raises(CancelledError):
        gone.result(5)
    assert engine.batches == [(1, 3, 2, 2), (1, 3, 2, 2)]


def test_a_second_worker_waits_for_more_while_the_first_runs(batcher_of):
    engine = Engine(free=False)
    batcher = batcher_of(engine, 3, delay=60, workers=2)
    futures = [batcher.submit(images(1))]
    assert engine.began.acquire(timeout=5)
    futures += [batcher.submit(images(1)) for _ in range(2)]
    assert not engine.began.acquire(timeout=0.1)  # it waits
    futures.append(batcher.submit(images(1)))  # and now it is full
    assert engine.began.acquire(timeout=5)
    engine.may.release(10)
    assert [future.result(5).batch for future in futures] == [1, 3, 3, 3]


def test_it_waits_no_longer_than_the_delay_nor_than_the_first_runs(batcher_of):
    engine = Engine(free=False)
    batcher = batcher_of(engine, 8, delay=0.2, workers=2)
    batcher.submit(images(1))
    assert engine.began.acquire(timeout=5)
    start = time.monotonic()
    batcher.submit(images(1))
    assert engine.began.acquire(timeout=5)
    assert 0.1 < time.monotonic() - start < 3
    engine.may.release(2)
    patient = batcher_of(other := Engine(free=False), 8, delay=60, workers=2)
    patient.submit(images(1))
    assert other.began.acquire(timeout=5)
    patient.submit(images(1))
    other.may.release()  # the first ends: nothing is busy
    assert other.began.acquire(timeout=5)


def test_a_failure_is_told_to_who_asked_and_the_next_batch_runs(batcher_of):
    def run(images):
        if images[0, 0, 0, 0] == 7:
            raise ValueError("seven")
        return (images,)

    batcher = batcher_of(run, 8)
    with pytest.raises(ValueError, match="seven"):
        batcher.submit(images(1, 7.0)).result(5)
    assert batcher.submit(images(1)).result(5).batch == 1


def test_closing_finishes_what_waits_and_takes_nothing_new(batcher_of):
    engine = Engine(free=False)
    batcher = batcher_of(engine, 1)
    futures = [batcher.submit(images(1)) for _ in range(3)]
    closing = threading.Thread(target=batcher.close, args=(30,))
    closing.start()
    while not batcher._closed:
        time.sleep(0.01)
    with pytest.raises(StoppingError):
        batcher.submit(images(1))
    engine.may.release(10)
    closing.join(5)
    assert [future.result(0).batch for future in futures] == [1, 1, 1]


def test_many_threads_get_their_own_answers(batcher_of):
    batcher = batcher_of(Engine(), 8, workers=2)

    def ask(value, found):
        for _ in range(20):
            count = 1 + int(value) % 3
            answer = batcher.submit(images(count, value)).result(10)
            found.append(torch.equal(answer.outputs[0], images(count, 2 * value)))

    results = [[] for _ in range(16)]
    threads = [threading.Thread(target=ask, args=(float(index), found)) for index, found in enumerate(results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [[True] * 20] * 16


def test_an_engine_that_returns_too_few_is_told_and_the_next_batch_runs(batcher_of):
    batcher = batcher_of(lambda images: (images[:1],), 8)
    with pytest.raises(RuntimeError, match="split"):
        batcher.submit(images(2)).result(5)
    assert batcher.submit(images(1)).result(5).batch == 1


def test_one_that_fails_costs_only_itself(batcher_of):
    began, go = threading.Event(), threading.Event()

    def run(images):
        began.set()
        go.wait(10)
        if (images == 7).any():
            raise ValueError("seven")
        return (images,)

    batcher = batcher_of(run, 8)
    batcher.submit(images(1))
    assert began.wait(5)
    good, bad, other = (batcher.submit(images(1, value)) for value in (1.0, 7.0, 2.0))
    go.set()
    with pytest.raises(ValueError, match="seven"):
        bad.result(5)
    for future, value in ((good, 1.0), (other, 2.0)):
        assert torch.equal(future.result(5).outputs[0], images(1, value))
