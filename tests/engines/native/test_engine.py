"""The engine of our own code: how a batch is run, by whom, and what it keeps."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bundle_samples import images

import conformer_fast as cf
from conformer_fast.engines.native import engine as module
from conformer_fast.engines.native.engine import NativeEngine
from conformer_fast.engines.native.graph import Graph
from conformer_fast.engines.native.layout import Layout, convolved
from conformer_fast.errors import EngineError
from conformer_fast.inference.lower import lower

pytestmark = pytest.mark.filterwarnings("ignore:the int8 quantization may be far off")  # of so few images


@pytest.fixture
def graph(small_model):
    quantization = cf.calibrate(small_model, [images(8, 3, 32, 32)], precision="int8")
    return Graph.of(lower(small_model, ["logits", "2.map"], quantization=quantization, attended=True))


def run(graph, threads):
    return NativeEngine(lambda: graph, threads, "portable")


def same(some, others):
    return all(map(torch.equal, some, others))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9])
def test_an_image_s_result_depends_neither_on_its_neighbors_nor_on_threads(batch, threads, graph):
    batch_of_them, one = images(batch, 3, 32, 48), run(graph, 1)
    alone = [one(image[None]) for image in batch_of_them]
    assert same(run(graph, threads)(batch_of_them), map(torch.cat, zip(*alone, strict=True)))


@pytest.mark.parametrize(
    ("left", "threads", "most", "expected"),
    [
        (1, 1, 4, (1, 1, 1)),
        (1, 16, 4, (1, 1, 1)),
        (3, 4, 4, (1, 2, 2)),  # all threads share each step of two images, then of one
        (4, 4, 4, (4, 1, 4)),
        (9, 2, 4, (2, 4, 8)),
        (7, 2, 4, (2, 2, 4)),
        (7, 1, 4, (1, 4, 4)),
        (40, 2, 4, (2, 4, 40)),
        (9, 2, 1, (2, 1, 8)),
    ],
)
def test_how_a_batch_is_split(left, threads, most, expected):
    """How many programs run, how many images each at once, and how many in all."""
    assert module._round(left, threads, most) == expected


def test_large_images_are_run_one_at_a_time(graph, monkeypatch):
    monkeypatch.setattr(module, "MANY_PIXELS", 32 * 48)
    small, large = run(graph, 1), run(graph, 1)
    small(images(4, 3, 32, 32))
    large(images(4, 3, 32, 48))
    assert [shape.images for shape in (*small._plans, *large._plans)] == [4, 1]


def test_the_last_sizes_are_kept(graph):
    engine = run(graph, 1)
    expected = engine(images(1, 3, 32, 32))
    for width in range(48, 48 + 16 * module.PLANS_KEPT, 16):
        engine(images(1, 3, 32, width))
    assert len(engine._plans) == module.PLANS_KEPT
    assert 32 not in {shape.width for shape in engine._plans}
    assert same(engine(images(1, 3, 32, 32)), expected)


def test_many_threads_use_one_engine(graph):
    engine, batches = run(graph, 2), [images(1 + seed % 3, 3, 32, 32) + seed for seed in range(12)]
    expected = [engine(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(same, pool.map(engine, batches), expected))


def test_weights_are_kept_once(graph):
    engine = run(graph, 1)
    engine(images(1, 3, 32, 32))
    kept, weights = engine._network()
    assert engine._read is None
    assert torch.int8 not in {tensor.dtype for tensor in kept.tensors.values()}
    assert len(weights) == sum(tensor.dtype == torch.int8 for tensor in graph.tensors.values()) + 2  # and the heads


def test_a_first_run_that_was_interrupted_is_made_up_for(graph, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    engine, expected = run(graph, 1), run(graph, 1)(images(1, 3, 32, 32))
    with monkeypatch.context() as broken:
        broken.setattr(module, "all_packed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine(images(1, 3, 32, 32))
    assert same(engine(images(1, 3, 32, 32)), expected)


def test_programs_of_many_callers_are_let_go(graph):
    engine, batch = run(graph, 1), images(1, 3, 32, 32)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(engine, [batch] * 64))
    assert len(next(iter(engine._plans.values())).free) <= 2


def test_images_beyond_32_bits_are_refused():
    with pytest.raises(EngineError, match="are more than a table of 32 bits finds; give smaller images"):
        convolved(Layout(1, 64, 64, 2**20, 1), 3, 1, 64, 64)
