"""The TensorRT runtime on a real GPU, with a TensorRT that builds for it: `pytest -m trt`."""

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from executor_samples import FORMS, assert_same, equal, images
from torch import Tensor

from conformer_fast.engines.tensorrt.engine import TensorRTEngine
from conformer_fast.engines.tensorrt.flavors import get_flavor
from conformer_fast.model.shapes import Shapes

CALLS = 30  # of each thread


def real_engine(model, profiles, precision="fp32"):
    """The model's engine for the GPU that is here. Returns it and the names of its outputs."""
    from conformer_fast.engines.onnx.export import onnx_from_model
    from conformer_fast.engines.tensorrt.flavors import gpu_target
    from conformer_fast.engines.tensorrt.plan import engine_from_onnx
    from conformer_fast.inference.lower import lower

    flavor, fused = get_flavor(), lower(model)
    onnx = onnx_from_model(fused).SerializeToString()
    if flavor.targets and gpu_target() not in flavor.targets:
        pytest.skip(f"{flavor} does not build for {gpu_target()}")
    built = engine_from_onnx(onnx, profiles, flavor, (), precision)
    device = torch.device("cuda", torch.cuda.current_device())
    return TensorRTEngine(built, flavor, fused.outputs, device), fused.outputs


HAS_TENSORRT = any(map(find_spec, ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")))


@pytest.mark.trt
@pytest.mark.skipif(not torch.cuda.is_available() or not HAS_TENSORRT, reason="needs a CUDA device and TensorRT")
class TestOnTheGPU:
    @pytest.fixture(scope="class")
    def model(self, small_config):
        import lookalikes

        from conformer_fast import Conformer

        torch.manual_seed(0)
        return lookalikes.fill(Conformer(small_config)).eval()

    @pytest.fixture(scope="class")
    def engine(self, model):
        profiles = [
            Shapes((1, 2, 4), (32, 32, 32), (32, 32, 32)),
            Shapes((1, 4, 12), (32, 48, 64), (32, 48, 64)),
        ]
        return real_engine(model, profiles)

    def check(self, engine, model, batch: Tensor) -> None:
        """Compares with the reference. fp32 products may be TF32, whose mantissa has 10 bits."""
        from conformer_fast.model.outputs import reference_outputs

        run, names = engine
        with torch.no_grad():
            assert_same([tensor.cpu() for tensor in run(batch.cuda())], reference_outputs(model, batch, names), 1e-2)

    @pytest.mark.parametrize("size", [(1, 32, 32), (3, 32, 32), (4, 32, 32), (5, 32, 32), (12, 64, 48)], ids=str)
    def test_trt_logits_are_the_references(self, size, engine, model):
        B, H, W = size
        for seed in range(3):  # recorded, then replayed
            self.check(engine, model, images(B, 3, H, W, seed=seed))

    def test_trt_shape_outside(self, engine):
        with pytest.raises(ValueError, match="do not fit the engine"):
            engine[0](images(13, 3, 32, 32, device="cuda"))

    @pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
    def test_trt_forms_of_images(self, make, engine):
        batch = images(3, 3, 32, 48, device="cuda").bfloat16().float()
        assert equal(engine[0](make(batch)), engine[0](batch))

    def test_trt_run_neither_waits_nor_allocates_more_than_results(self, engine):
        run, names = engine
        batch = images(4, 3, 32, 32, device="cuda")
        run(batch)
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = run(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == len(results) == len(names)

    def test_trt_callers_stream(self, engine):
        """The images are made late on a stream of the caller's; a run that did not wait for them would miss them."""
        run, side = engine[0], torch.cuda.Stream()
        batch = images(2, 3, 32, 32, device="cuda")
        expected = run(batch)
        torch.cuda.synchronize()
        for _ in range(3):
            with torch.cuda.stream(side):
                late = torch.zeros_like(batch)
                torch.cuda._sleep(50_000_000)
                late.copy_(batch)
                results = run(late)
                del late
                copies = [tensor.clone() for tensor in results]
            side.synchronize()
            assert equal(copies, expected)

    def test_trt_threads_and_streams(self, engine):
        run = engine[0]
        batches = [images(B, 3, size, size, seed=B, device="cuda") for B, size in [(1, 32), (3, 32), (5, 48), (8, 64)]]
        expected = [run(batch) for batch in batches]
        torch.cuda.synchronize()

        def work(worker: int) -> None:
            choose = random.Random(worker)
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(CALLS):
                    index = choose.randrange(len(batches))
                    results = run(batches[index])
                    torch.cuda.current_stream().synchronize()
                    assert_same(results, expected[index], 1e-3)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))

    def test_trt_dropped_engine_gives_its_memory_back(self, model):
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        run, _ = real_engine(model, [Shapes((1, 2, 4), (32, 32, 32), (32, 32, 32))])
        run(images(4, 3, 32, 32, device="cuda"))
        del run
        gc.collect()
        assert torch.cuda.memory_allocated() == before

    def test_trt_compile_save_and_load(self, model, tmp_path):
        if get_flavor().targets:
            pytest.skip("TensorRT-RTX may not build for this GPU")
        import conformer_fast as cf

        shapes = Shapes((1, 2, 4), (32, 32, 64), (32, 32, 64))
        fast = cf.compile(model, backend="tensorrt", precision="fp16", shapes=shapes)
        batch = images(3, 3, 32, 48).cuda()
        assert fast.verify(batch).within
        loaded = cf.load(fast.save(tmp_path / "bundle"))
        assert loaded.verify(batch, model).within
        assert_same(loaded.run(batch), fast.run(batch), 1e-3)
