"""The TensorRT engine's contexts, one for each shape: the profile and the rows of each, and how long it is kept."""

import gc

import pytest
from executor_samples import assert_same, images
from tensorrt_samples import engine_of, reference

from conformer_fast.engines.tensorrt import engine as engine_module


def test_one_context_for_each_shape(trt):
    """Shapes and addresses are set once: a graph is of one shape, and TensorRT-RTX's own too."""
    engine = engine_of(trt)
    for B, size in [(3, 16), (4, 16), (5, 16), (8, 24), (7, 24), (3, 16), (12, 32)]:
        batch = images(B, 3, size, size)
        assert_same(engine(batch), reference(batch))
    assert len(trt.contexts) == 4
    assert trt.moved == 0
    assert {shape[0] for shape, _ in trt.runs} == {4, 8, 12}


def prepared(contexts) -> set[tuple[int, ...]]:
    """The profile's index, rows, height and width that each context is set to."""
    return {
        (context.engine.fields["profiles"].index(context.profile), context.shape[0], *context.shape[2:])
        for context in contexts
    }


def test_first_profile_that_admits_the_batch(trt, contexts):
    engine = engine_of(trt)
    known: set[tuple[int, ...]] = set()
    for B, height, width, key in [
        (1, 16, 16, (0, 1, 16, 16)),
        (3, 16, 16, (0, 4, 16, 16)),
        (4, 16, 16, (0, 4, 16, 16)),
        (5, 16, 16, (1, 8, 16, 16)),
        (11, 16, 16, (1, 12, 16, 16)),
        (2, 24, 32, (1, 2, 24, 32)),
    ]:
        engine(images(B, 3, height, width))
        known.add(key)
        assert prepared(contexts) == known
    assert len(contexts) == 5


def test_bucket_does_not_exceed_the_profile(trt, contexts):
    engine = engine_of(trt, profiles=[[(2, 3, 16, 16), (3, 3, 16, 16), (7, 3, 16, 16)]])
    engine(images(5, 3, 16, 16))
    assert prepared(contexts) == {(0, 7, 16, 16)}
    assert_same(engine(images(7, 3, 16, 16)), reference(images(7, 3, 16, 16)))


@pytest.mark.parametrize("shape", [(13, 3, 16, 16), (1, 3, 8, 16), (1, 3, 16, 40), (5, 3, 40, 40)])
def test_shape_outside_all_profiles(shape, trt):
    engine = engine_of(trt)
    with pytest.raises(ValueError, match="do not fit the engine, which takes batch 1 to 4, height 16") as caught:
        engine(images(*shape))
    assert "batch 1 to 12, height 16 to 32" in str(caught.value)
    assert not trt.runs


def test_least_recently_used_shape_is_dropped(trt, cuda, monkeypatch):
    monkeypatch.setattr(engine_module, "SHAPES_KEPT", 2)
    engine = engine_of(trt)
    batches = [images(B, 3, 16, 16) for B in (1, 2, 4)]
    for batch in [*batches[:2], batches[0]]:
        engine(batch)
    cuda.log.clear()
    engine(batches[2])  # drops that of two
    assert cuda.log[1] == ("wait on the host", None)  # after the wait for the last run: it may still be going on
    made = len(trt.contexts)
    assert_same(engine(batches[0]), reference(batches[0]))
    assert len(trt.contexts) == made
    assert_same(engine(batches[1]), reference(batches[1]))
    assert len(trt.contexts) == made + 1
    gc.collect()
    assert trt.freed_early == 0
    assert cuda.graphs.total() == (0 if trt.rtx else 2)
