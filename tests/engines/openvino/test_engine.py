"""The CPU engine: streams, the engines kept in memory and on disk, what an engine's identity is, failures inside."""

import errno
import gc
import itertools
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import conformer_fast as cf

pytest.importorskip("openvino")
pytest.importorskip("onnx")

import openvino as ov

from conformer_fast.engines import cache
from conformer_fast.engines.onnx.export import onnx_from_model
from conformer_fast.engines.openvino import device as devices
from conformer_fast.engines.openvino import engine as engine_module
from conformer_fast.engines.openvino.device import describe, native_precisions
from conformer_fast.engines.openvino.engine import Computed, OpenVINOEngine, streams_for
from conformer_fast.engines.openvino.ir import ir_of
from conformer_fast.inference.lower import lower


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; returns the folder of engines in it."""
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def builds(monkeypatch) -> list[dict]:
    """What each engine is that is built during the test."""
    made = []

    def counted(fields, build, refused):
        return original(fields, lambda: made.append(fields) or build(), refused)

    original = engine_module.cached
    monkeypatch.setattr(engine_module, "cached", counted)
    return made


class Loaded:
    """The engines that were loaded for a run during the test, in order: images at once, and streams.

    sizes: of those that are still in memory, height and width as text, "1.." for any
    """

    def __init__(self) -> None:
        self.engines: list[tuple[int, int]] = []
        self._alive: weakref.WeakSet = weakref.WeakSet()

    def add(self, compiled, options) -> None:
        self.engines.append((compiled.input(0).partial_shape[0].get_length(), int(options["NUM_STREAMS"])))
        self._alive.add(compiled)

    @property
    def sizes(self) -> set[tuple[str, str]]:
        gc.collect()
        return {tuple(map(str, compiled.input(0).partial_shape))[2:] for compiled in self._alive}


@pytest.fixture
def loaded(monkeypatch) -> Loaded:
    noted, load = Loaded(), ov.Core.import_model

    def counted(core, content, device, options):
        compiled = load(core, content, device, options)
        noted.add(compiled, options)
        return compiled

    monkeypatch.setattr(ov.Core, "import_model", counted)
    return noted


def kept_engines() -> list[cache.CachedEngine]:
    """Those that run, without what holds their weights. The last used first."""
    return [entry for entry in cache.cached_engines() if "height" in entry.fields]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compiled(model, **options) -> cf.FastConformer:
    return cf.compile(model, backend="openvino", **{"precision": "fp32", **options})


def assert_right(results, model, batch) -> None:
    with torch.no_grad():
        for ours, expected in zip(results, model(batch), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


ONE, EIGHT = [(1, 1, 1), (9, 1, 1)], [(1, 8, 1), (2, 8, 2), (3, 8, 2), (4, 8, 4), (7, 8, 4), (8, 8, 8), (1000, 8, 8)]
UNEVEN = [(2, 3, 2), (3, 3, 3), (5, 6, 4), (6, 6, 6), (11, 12, 8), (12, 12, 12)]


@pytest.mark.parametrize(("batch", "threads", "streams"), [*ONE, *EIGHT, *UNEVEN])
def test_streams(batch, threads, streams):
    assert streams_for(batch, threads) == streams


def test_streams_never_exceed_images_or_threads():
    for batch, threads in itertools.product(range(1, 70), range(1, 70)):
        streams = streams_for(batch, threads)
        assert 1 <= streams <= min(batch, threads)
        assert 2 * streams > min(batch, threads)  # at least half of what there is


def test_kinds_of_engine_a_batch_needs():
    """Whatever batch comes, a thread count has few stream counts: that bounds the engines of one image size, beside
    one or two for several images at once."""
    assert {streams_for(batch, 12) for batch in range(1, 100)} == {1, 2, 4, 8, 12}


@pytest.mark.parametrize("own", [0, 1])
def test_engines_stay_whatever_their_number(own, small_model, loaded, monkeypatch):
    """A batch that fills no round needs many: loading them at each call would take longer than running them."""
    monkeypatch.setattr(engine_module, "OWN_SIZES", own)
    fast = compiled(small_model, precision="int8", quantization=[images(4, 3, 32, 32)], threads=4)
    batch = images(23, 3, 32, 32)  # 16, 4, 2 and 1
    first = fast(batch)
    needed = [(4, 4), (1, 4), (1, 2), (1, 1)]
    assert loaded.engines == needed
    assert all(map(torch.equal, fast(batch), first))
    assert loaded.engines == needed


def test_precisions_are_known_ones():
    assert native_precisions()[0] == "fp32"
    assert set(native_precisions()) <= set(devices.PRECISIONS)


@pytest.mark.parametrize(
    ("capabilities", "precisions"),
    [(["FP32", "INT8"], ("fp32",)), (["BF16", "FP32"], ("fp32", "bf16")), (["FP16", "FP32"], ("fp32", "fp16"))],
)
def test_16_bits_only_where_the_cpu_has_them(capabilities, precisions, monkeypatch):
    class Core:
        def get_property(self, *_):
            return capabilities

    monkeypatch.setattr(devices, "core", Core)
    assert native_precisions() == precisions


@pytest.mark.parametrize("threads", [1, 2, 3, 200])
def test_any_number_of_threads(threads, small_model):
    batch = images(7, 3, 32, 32)
    assert_right(compiled(small_model, threads=threads)(batch), small_model, batch)


@pytest.mark.parametrize(
    ("batch", "threads", "runs"),
    [(8, 2, [4, 4]), (7, 2, [1] * 7), (12, 2, [4, 4, 1, 1, 1, 1]), (17, 2, [4] * 4 + [1]), (9, 1, [4, 4, 1])],
)
def test_several_images_run_at_once_in_8_bits(batch, threads, runs, small_model, loaded, monkeypatch):
    """And an image has the result that it has alone, but for sums in another order."""
    calibration = [images(4, 3, 32, 32)]
    fast = compiled(small_model, precision="int8", quantization=calibration, threads=threads)
    given, seen = images(batch, 3, 32, 32), []
    read = ov.InferRequest.set_input_tensor

    def counted(request, tensor):
        seen.append(tensor.shape[0])
        read(request, tensor)

    monkeypatch.setattr(ov.InferRequest, "set_input_tensor", counted)
    together = fast(given)
    assert seen == runs
    assert {images for images, _ in loaded.engines} == set(runs)
    alone = torch.cat([fast(image[None]).logits for image in given])
    torch.testing.assert_close(together.logits, alone, rtol=0.02, atol=0.02 * alone.abs().max().item())
    assert together.logits[0].sub(alone[1:]).abs().amax(-1).min() > 0.05 * alone.abs().max()  # images differ


def test_precision_reaches_the_hardware(small_model):
    if "bf16" not in native_precisions():
        pytest.skip("this CPU does not compute in bf16")
    batch = images(2, 3, 32, 32)
    with torch.no_grad():
        exact = small_model.double()(batch.double()).logits
    small_model.float()
    errors = {
        precision: ((compiled(small_model, precision=precision)(batch).logits - exact).norm() / exact.norm()).item()
        for precision in ("fp32", "bf16")
    }
    assert errors["fp32"] < 1e-5
    assert 1e-4 < errors["bf16"] < 5e-2


def test_engines_in_memory_are_bounded(small_model, loaded, monkeypatch):
    """The first sizes have their own, which stay; all others share one. Results are right in any order."""
    monkeypatch.setattr(engine_module, "OWN_SIZES", 2)
    fast = compiled(small_model, threads=1)
    own, others = [(32, 32), (32, 48)], [(48, 32), (33, 47), (64, 96), (48, 32)]
    results = {}
    for size in (*own, *others, *own, *others):
        batch = images(2, 3, *size)
        result = fast(batch)
        assert_right(result, small_model, batch)
        assert all(map(torch.equal, result, results.setdefault(size, result)))
    assert loaded.sizes == {("32", "32"), ("32", "48"), ("?", "?")}
    assert len(loaded.engines) == 3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_features_of_any_size(precision, small_config, monkeypatch):
    """Outputs whose sizes only a run tells, in batches of more than run at once."""
    torch.manual_seed(0)
    model = cf.create_model(small_config, features_only=True)
    calibration = {"quantization": [images(4, 3, 32, 32)]} if precision == "int8" else {}
    own, shared = (compiled(model, precision=precision, threads=1, **calibration) for _ in range(2))
    for size in ((64, 96), (33, 47)):
        batch = images(5, 3, *size)
        expected = own(batch)
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "OWN_SIZES", 0)
            found = shared(batch)
        for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
            for mine, other in zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]:
                assert mine.shape == other.shape
                error = (mine - other).norm() / other.norm()
                assert error < (1e-5 if precision == "fp32" else 0.05), name


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


def test_a_size_whose_engine_cannot_be_built_takes_no_place(small_model, own_cache, loaded, monkeypatch):
    monkeypatch.setattr(engine_module, "OWN_SIZES", 1)
    fast = compiled(small_model)
    with monkeypatch.context() as patch:
        patch.setattr(ov.Core, "compile_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fast(images(1, 3, 32, 64))
    fast(images(1, 3, 32, 32))
    assert loaded.sizes == {("32", "32")}


def test_second_compile_exports_nothing(small_model, own_cache, builds):
    batch = images(3, 3, 32, 32)
    first = compiled(small_model)(batch)
    assert len(builds) == 1
    second = compiled(small_model)(batch)
    assert len(builds) == 1
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_batches_and_threads_share_an_engine(small_model, own_cache, builds):
    """The key has the image's size, neither the batch's nor the machine's load."""
    for threads in (1, 2):
        for batch_size in (1, 2, 3):
            compiled(small_model, threads=threads)(images(batch_size, 3, 32, 32))
    assert len(builds) == len(kept_engines()) == 1


def one_ulp(model):
    weight = model.conv_trans_2.trans_block.mlp.fc1.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    return model


def other_norm(model):
    with torch.no_grad():
        model.conv_trans_3.fusion_block.bn3.running_var[3] *= 1.5
    return model


CHANGES = {
    "one weight by one ulp": one_ulp,
    "a running variance": other_norm,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_are_another_engine(change, small_model, own_cache, builds):
    batch = images(1, 3, 32, 32)
    compiled(small_model)(batch)
    assert_right(compiled(change(small_model))(batch), small_model, batch)
    assert len(builds) == len(kept_engines()) == 2


def test_heads_that_leave_no_trace_in_the_weights_are_another_engine(small_config, own_cache):
    """Two and three heads have the same state dict."""
    batch = images(1, 3, 32, 32)
    for heads in (2, 3):
        config = cf.ConformerConfig(**{**vars(small_config), "num_heads": heads})
        torch.manual_seed(0)
        model = cf.create_model(config)
        assert_right(compiled(model)(batch), model, batch)
    assert len(kept_engines()) == 2


def test_everything_that_decides_an_engine_is_in_its_key(small_model, own_cache, monkeypatch):
    batch = images(1, 3, 32, 48)
    fast = compiled(small_model)
    fast(batch)
    fast.engine(["trans_logits"])(batch)
    fast.engine(["trans_logits", "conv_logits"])(batch)
    fast(batch.transpose(2, 3))
    assert len(kept_engines()) == 4
    fields = kept_engines()[0].fields
    assert set(fields) == {*describe(), "ir", "backend", "precision", "rest", "images", "height", "width"}
    assert (fields["height"], fields["width"]) == (48, 32)

    elsewhere = {**describe(), "device": "another"}
    monkeypatch.setattr(engine_module, "describe", lambda _: elsewhere)
    compiled(small_model)(batch)
    monkeypatch.setattr(engine_module, "describe", lambda _: {**elsewhere, "openvino": "0.0"})
    compiled(small_model)(batch)
    assert len(kept_engines()) == 6


def test_precision_is_in_the_key(small_model, own_cache):
    graph = onnx_from_model(lower(small_model), products="conv").SerializeToString()
    for precision in devices.PRECISIONS:
        ir = ir_of(graph, precision)
        OpenVINOEngine(lambda ir=ir: ir, Computed(precision, precision), 1)(images(1, 3, 32, 32))
    assert {entry.fields["precision"] for entry in kept_engines()} == {"fp32", "bf16", "fp16"}


def test_description_of_the_cpu_is_json_and_steady():
    described = describe()
    assert described == describe()
    assert described["device"]
    assert described["capabilities"] == sorted(described["capabilities"])
    assert described["openvino"] == engine_module.ov.__version__


def test_what_is_damaged_is_built_again(small_model, own_cache, builds):
    """An engine, and what holds its weights."""
    batch = images(2, 3, 32, 32)
    first = compiled(small_model)(batch)
    paths = [*own_cache.glob("*.engine")]
    assert len(paths) == 2
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged; building it again") as warned:
        again = compiled(small_model)(batch)
    assert len([*warned]) == 2, [str(w.message) for w in warned]
    assert len(builds) == 2
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(small_model)(batch)
    assert len(builds) == 2


def test_works_without_a_folder(small_model, own_cache):
    own_cache.parent.write_text("in the way")
    batch = images(2, 3, 32, 32)
    fast = compiled(small_model)
    with pytest.warns(UserWarning, match="engines are not kept"):
        results = fast(batch)
    assert_right(results, small_model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(batch)  # kept in memory


def test_a_program_that_closes_all_descriptors():
    """As those do that become daemons. The weights are read again, not from what has the number now."""
    code = """
import os, torch
import conformer_fast as cf
model = cf.create_model("digits", "packaged")
fast = cf.compile(model, backend="openvino", precision="fp32")
fast(torch.zeros(1, 3, 64, 64))
os.closerange(3, 256)
with torch.no_grad():
    other = cf.create_model("digits", "packaged")
    other.trans_cls_head.weight.mul_(3)
cf.compile(other, backend="openvino", precision="fp32")(torch.zeros(1, 3, 64, 64))  # its weights have that number
images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
print(torch.allclose(fast(images).logits, model(images).logits, atol=1e-4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_temporary_folder_without_room(small_model, own_cache, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(ov, "save_model", full)
    with pytest.raises(cf.EngineError, match=r"write \d+ MB to the temporary folder .*set TMPDIR to another folder"):
        compiled(small_model)(images(1, 3, 32, 32))


def test_weights_that_find_no_room(small_model, monkeypatch):
    def full(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(engine_module, "MemoryFile", full)
    with pytest.raises(cf.EngineError, match=r"no room for the weights in memory \(Too many open files\); drop other"):
        compiled(small_model)(images(1, 3, 32, 32))


@pytest.mark.parametrize("content", [b"", b"{}\n", b"nonsense\n", b"[1]\nxml"])
def test_kept_weights_that_are_none(content, small_model, own_cache):
    """Of another version under the same key: they are written again."""
    batch = images(1, 3, 32, 32)
    expected = compiled(small_model)(batch)
    (entry,) = [entry for entry in cache.cached_engines() if "height" not in entry.fields]
    cache.cached(entry.fields, lambda: content, refused=(own_cache / f"{entry.key}.engine").read_bytes())
    assert all(map(torch.equal, compiled(small_model)(batch), expected))


def test_failed_build_is_tried_again(small_model, own_cache, monkeypatch):
    batch = images(2, 3, 32, 32)
    fast = compiled(small_model)
    with monkeypatch.context() as patch:
        patch.setattr("conformer_fast.engines.onnx.export.onnx_from_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fast(batch)
    assert cache.cached_engines() == []
    assert_right(fast(batch), small_model, batch)


def test_failure_between_images_leaves_the_engine_usable(small_model, monkeypatch):
    batch = images(5, 3, 32, 32)
    fast = compiled(small_model)
    expected = fast(batch)
    calls = itertools.count()

    def failing(request, port, tensor):
        if next(calls) == 2:  # an image has two outputs
            raise MemoryError("no memory for the second image")
        write(request, port, tensor)

    write = ov.InferRequest.set_output_tensor
    with monkeypatch.context() as patch:
        patch.setattr(ov.InferRequest, "set_output_tensor", failing)
        with pytest.raises(MemoryError, match="second image"):
            fast(batch)
    assert all(torch.equal(*pair) for pair in zip(fast(batch), expected, strict=True))


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


def test_ctrl_c_after_engines_are_gone():
    """Its signal stack must outlive OpenVINO's engines: otherwise the next signal is a segmentation fault."""
    code = """
import signal, threading, torch
import conformer_fast as cf

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def drop():
    engines.clear()

engines = [cf.compile(cf.create_model("digits", "packaged"), backend="openvino") for _ in range(3)]
for index in range(3):
    engines[index](torch.zeros(2, 3, 64, 64))
thread = threading.Thread(target=drop)
thread.start()
thread.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
