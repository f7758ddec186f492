"""Whether the engine still answers."""

import asyncio
import time

import pytest
import torch

import conformer_fast as cf
from conformer_fast.serving import service
from conformer_fast.serving.service import Options, Service


@pytest.fixture
def fast():
    return cf.compile(cf.create_model("digits", weights="packaged"), backend="reference")


def checked(fast, before=lambda: None):
    """What `check` of a service that has started raises once something has happened, and whether it is then ready."""

    async def run():
        found = Service(fast, Options(max_batch=2))
        await found.start()
        await asyncio.to_thread(found._warm.exception)
        before()
        try:
            await found.check()
        except Exception as error:
            return error, found.ready
        finally:
            found.batcher.close(0)
        return None, found.ready

    return asyncio.run(run())


def test_an_engine_that_answers(fast):
    assert checked(fast) == (None, True)


def test_an_engine_that_fails_later(fast, monkeypatch):
    def fail():
        monkeypatch.setattr(fast, "run", lambda images: (_ for _ in ()).throw(cf.EngineError("gone")))

    error, ready = checked(fast, fail)
    assert (str(error), ready) == ("gone", False)


def test_an_engine_that_hangs(fast, monkeypatch):
    monkeypatch.setattr(service, "ANSWERED", 0.2)
    run = fast.run

    def hang(images):
        time.sleep(1)
        return run(images)

    error, ready = checked(fast, lambda: monkeypatch.setattr(fast, "run", hang))
    assert isinstance(error, TimeoutError)
    assert not ready


def test_a_size_that_cannot_be_run(fast, monkeypatch):
    run = fast.run

    def small(images):
        if len(images) > 1:
            raise cf.EngineError("too many")
        return run(images)

    monkeypatch.setattr(fast, "run", small)
    error, ready = checked(fast)
    assert (str(error), ready) == ("too many", False)


def test_it_is_ready_again_once_it_answers(fast, monkeypatch):
    async def run():
        found = Service(fast, Options(max_batch=2))
        await found.start()
        await found.check()
        with monkeypatch.context() as patched:
            patched.setattr(fast, "run", lambda images: torch.zeros(0)[1])
            with pytest.raises(IndexError):
                await found.check()
        states = [found.ready]
        await found.check()
        found.batcher.close(1)
        return [*states, found.ready]

    assert asyncio.run(run()) == [False, True]
