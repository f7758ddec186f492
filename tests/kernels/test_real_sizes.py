"""Every different call of the four variants at the sizes at which it runs, and the whole networks, on a GPU."""

import lookalikes
import pytest
import torch
from eight_bits import TIES
from kernel_checks import check

import conformer_fast as cf
from benchmarks.gpu.roofline import filled, network
from benchmarks.judge import finest, poisoned_memory
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.chips import chip_of
from conformer_fast.kernels.tiles import Tile
from conformer_fast.model import functional as CF
from conformer_fast.model.distance import relative_error
from conformer_fast.model.precision import FORMATS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SEEDS = pytest.mark.parametrize("seed", range(3))
EACH_VARIANT = pytest.mark.parametrize("variant", cf.VARIANTS)
SIDE = 224  # of images
LARGE_BATCH = 12000  # with which an input or output of each has more than 2^31 elements
LARGE = {
    "conv1x1": ((28, 28, 64), (256, 64), (256,)),
    "conv3x3": ((28, 28, 64), (256, 64, 3, 3), (256,)),
    "linear": ((197, 384), (1152, 384), (1152,)),
    "attention": ((197, 1152), 6, 1.0),
}


def check_calls(variant, batch, seed, precision="fp16"):
    """Each as the network would run it here: by the tuned tile if there is one."""
    wrong = []
    for operation in network(variant, batch, precision):
        try:
            arguments = filled(operation.arguments, "cuda", seed)
            plan = dispatch.PLANS[operation.name](*arguments)
            choice, _ = dispatch.choose(plan, chip_of(torch.device("cuda")).name)
            check(
                operation.name,
                arguments,
                choice if isinstance(choice, Tile) else None,
                TIES if precision in FORMATS else 0.0,
            )
        except Exception as failure:  # the others are checked all the same
            wrong.append(f"{operation.problem}: {type(failure).__name__}: {failure}")
    assert not wrong, "\n".join(wrong)


def needs_memory(gib):
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory, there are {free / 2**30:.0f}")


@SEEDS
@pytest.mark.parametrize("batch", [1, 8])
@EACH_VARIANT
def test_calls(variant, batch, seed):
    check_calls(variant, batch, seed)


@EACH_VARIANT
def test_calls_of_a_large_batch(variant):
    needs_memory(12)
    check_calls(variant, 128, seed=0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@EACH_VARIANT
def test_calls_in_other_precisions(variant, precision):
    check_calls(variant, 2, seed=0, precision=precision)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("precision", FORMATS)
@EACH_VARIANT
def test_calls_in_8_bits(variant, precision, batch):
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no products in FP8")
    check_calls(variant, batch, seed=0, precision=precision)


@pytest.mark.parametrize("operation", LARGE)
def test_more_elements_than_32_bits_count(operation):
    needs_memory(16)
    image, *weights = LARGE[operation]
    arguments = [
        torch.randn(argument, dtype=torch.float16, device="cuda") if isinstance(argument, tuple) else argument
        for argument in ((LARGE_BATCH, *image), *weights)
    ]
    plan = dispatch.PLANS[operation](*arguments)
    last = plan.launch(plan.tiles[0])[-1:]
    alone = [finest(a) if isinstance(a, torch.Tensor) else a for a in (arguments[0][-1:], *arguments[1:])]
    assert relative_error(last, getattr(CF, operation)(*alone)) < 1e-3


@EACH_VARIANT
def test_networks(variant):
    """Poisoned in every replay: what fills the memory with NaN is recorded with the kernels."""
    model = lookalikes.fill(cf.create_model(variant))
    with poisoned_memory():
        fast = cf.compile(model, backend="triton", precision="fp16")
        for seed, batch in enumerate((1, 5, 8)):
            torch.manual_seed(seed)
            report = fast.verify(torch.randn(batch, 3, SIDE, SIDE, device="cuda"))
            assert all(row.within for row in (*report.results, *report.blocks)), str(report)
