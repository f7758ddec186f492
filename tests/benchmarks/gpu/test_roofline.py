"""What the networks must do at least, as the GPU suite counts it, and the floors that follow."""

import math
from dataclasses import replace

import pytest
import torch
from gpu_suite_samples import CEILINGS

from benchmarks.gpu import roofline, steps
from benchmarks.gpu.roofline import Ceilings, Operation
from conformer_fast.kernels.launch import STORED
from conformer_fast.model import functional

# GMAC, megabytes of weights, and of activations an image in one precision: computed by hand for one kernel a product,
# the stem's pool and FCU-down's average in kernels of their own, which here they are not, and the norms are written
BY_HAND = {
    "tiny-p16": (5.14, 47, 77),
    "small-p32": (6.62, 78, 108),
    "small-p16": (10.27, 75, 146),
    "base-p16": (22.58, 166, 215),
}


def total(operations, what):
    return sum(operation.count * getattr(operation, what) for operation in operations)


@pytest.mark.parametrize("variant", steps.VARIANTS)
def test_what_the_network_must_do(variant):
    one, two = (roofline.network(variant, batch, "fp32") for batch in (1, 2))
    gmac, weights, activations = BY_HAND[variant]
    assert sum(operation.count for operation in one) == 158
    assert total(one, "flops") / 2e9 == pytest.approx(gmac, abs=0.005)
    an_image = total(two, "bytes") - total(one, "bytes")
    assert (total(one, "bytes") - an_image) / 2e6 == pytest.approx(weights, abs=0.7)
    assert 0.94 * activations < an_image / 2e6 < activations


def test_floors():
    ceilings = Ceilings(
        bytes_per_second=100,
        l2_bytes=50,
        l2_bytes_per_second=500,
        flops_per_second={"fp16": 1000, "int8": 2000},
        gap=1,
        dependent_gap=0.5,
    )
    work = {
        ("memory", 4.0): ("fp16", 200, 200, 10),
        ("memory", 2.1): ("fp16", 200, 50, 10),  # its activations stay in the L2 cache
        ("products", 5.0): ("fp16", 50, 50, 5000),
        ("products", 2.5): ("int8", 50, 50, 5000),
        ("launch", 0.02): ("fp16", 0, 10, 10),
    }
    for (bound, seconds), given in work.items():
        operation = Operation("", "", {}, 2, *given)
        assert operation.bound(ceilings) == bound
        assert operation.floor(ceilings) == pytest.approx(seconds)

    between = Operation("", "", {}, 1, "fp16", 70, 0, 10)  # 0.7 s, between both gaps
    assert between.bound(ceilings) == "memory"
    assert between.bound(replace(ceilings, dependent_gap=None)) == "launch"


@pytest.mark.parametrize("variant", steps.VARIANTS)
def test_floors_of_the_network(variant):
    ceilings = Ceilings(**{**CEILINGS, "l2_bytes": 0})
    plain, large = (roofline.floors(variant, batch, "fp16", ceilings) for batch in (1, 128))
    assert plain.launch == pytest.approx(158 * 2e-6, rel=0.01)
    assert plain.dependent_launch < 0.6 * plain.launch
    assert large.fused < large.floor <= large.dependent_launch <= large.launch
    in_cache = roofline.floors(variant, 8, "fp16", Ceilings(**CEILINGS))
    assert in_cache.floor < roofline.floors(variant, 8, "fp16", ceilings).floor
    without = roofline.floors(variant, 128, "fp16", Ceilings(**{**CEILINGS, "l2_bytes": 0, "dependent_gap": None}))
    assert (without.dependent_launch, without.floor) == (None, large.floor)


@pytest.mark.parametrize("variant", steps.VARIANTS)
def test_what_fused_bottlenecks_spare(variant):
    """By hand, in elements an image: of 7 bottlenecks at 56x56 and 8 at 28x28 the map between their last two
    convolutions, twice, and of 4 of each, which no coupling unit follows, the result, which is 4 times as wide, once;
    of the first of both the projected residual, twice. Seen in the floors of a machine that multiplies at no cost."""
    inner = {"tiny-p16": 16, "small-p32": 64, "small-p16": 64, "base-p16": 96}[variant]  # channels, then twice as many
    spared = 56**2 * inner * (7 * 2 + 4 * 4 + 2 * 4) + 28**2 * 2 * inner * (8 * 2 + 4 * 4 + 2 * 4)
    ceilings = Ceilings(1e9, 0, 1e9, dict.fromkeys(("fp32", "fp16"), math.inf), 0, None)
    one, two = (roofline.floors(variant, batch, "fp32", ceilings) for batch in (1, 2))
    assert ((two.floor - one.floor) - (two.fused - one.fused)) * 1e9 == pytest.approx(4 * spared)


def test_8_bits_are_counted():
    """Weights take half the bytes; what is between products is as it was."""
    fp16, int8, fp8 = (roofline.network("small-p16", 2, precision) for precision in ("fp16", "int8", "fp8"))
    assert {o.name for o in fp8 if o.precision == "fp16"} == {"stem", "attention", "heads", "conv1x1", "conv3x3"}
    assert sum(o.count for o in fp8 if o.precision == "fp16") == sum(o.count for o in int8 if o.precision == "fp16") + 5
    weights = total(int8, "weights") / total(fp16, "weights")
    assert 0.5 < weights < 0.55
    assert total(int8, "activations") < 0.7 * total(fp16, "activations")  # all but tokens and attention's input
    assert total(int8, "flops") == total(fp16, "flops")
    in_8_bits = sum(o.count * o.flops for o in int8 if o.precision == "int8")
    assert {o.name for o in int8 if o.precision == "fp16"} == {"attention", "heads"}
    assert 0.9 < in_8_bits / total(int8, "flops") < 1


def pairs(batch, precision="fp16", variant="small-p16"):
    """L, and whether FCU-up's map is added, of each pair; how many other 1x1 convolutions there are."""
    made = roofline.network(variant, batch, precision)
    found = [
        (len(operation.arguments["next_weight"]), operation.arguments["token_map"] is not None)
        for operation in made
        if operation.name == roofline.PAIR
        for _ in range(operation.count)
    ]
    return found, sum(operation.count for operation in made if operation.name == "conv1x1")


def test_which_of_the_network_are_pairs():
    """Where programs of 128 pixels fill the GPU. In small batches what adds FCU-up's map is apart, as the map before it
    is made beside the transformer."""
    assert pairs(1) == ([], 50)
    assert pairs(8) == ([(64, False)] * 3 + [(128, False)], 50 - 2 * 4)
    found, others = pairs(128)
    assert sorted(found) == sorted(
        [(64, False), (64, True)] * 3 + [(128, False)] + [(128, False)] * 3 + [(128, True)] * 4 + [(256, False)]
        + [(256, False)] * 3 + [(256, True)] * 4
    )  # fmt: skip
    assert others == 50 - 2 * len(found)
    assert pairs(128, "int8") == pairs(128, "fp32") == ([], 50)


def test_strided_operations_read_what_they_need():
    operations = roofline.network("tiny-p16", 1)
    strided = next(o for o in operations if o.name == "conv1x1" and o.arguments["stride"] == 2)
    _, H, W, K = strided.arguments["feature_map"].shape
    N = strided.arguments["weight"].shape[0]
    assert strided.bytes == 2 * (H * W // 4 * (K + N) + N * K + N)


def test_random_arguments_are_like_the_recorded_ones():
    operation = next(o for o in roofline.network("tiny-p16", 1) if o.name == "conv3x3")
    made = roofline.filled(operation.arguments, "cpu", 0)
    for given, value in zip(operation.arguments.values(), made, strict=True):
        if isinstance(given, torch.Tensor):
            assert (value.shape, value.stride(), value.dtype) == (given.shape, given.stride(), given.dtype)
            assert value.float().std() > 0
        else:
            assert value == given
    assert not torch.equal(made[0], roofline.filled(operation.arguments, "cpu", 1)[0])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@torch.no_grad()
def test_random_arguments_in_8_bits_give_results_near_1(precision):
    for operation in roofline.network("tiny-p16", 1, precision):
        if operation.precision == precision and operation.flops < 1e8:
            given = roofline.filled(operation.arguments, "cpu", 0)
            result = getattr(functional, operation.name)(*given)
            for values in result if isinstance(result, tuple) else [result]:
                step = 2**-5 if values.dtype in STORED else 1.0  # as `filled` fills scales
                assert 0.1 < step * values.float().std() < 10, operation.problem


@pytest.mark.parametrize("variant", steps.VARIANTS)
def test_what_fp8_leaves_in_16_bits_costs_little(variant):
    """As quantization.py says: 3 to 5 % of all products, and most of them wait for memory."""
    flops = {}
    for precision in ("int8", "fp8"):
        operations = roofline.network(variant, 128, precision)
        flops[precision] = sum(o.count * o.flops for o in operations if o.precision == precision)
    share = (flops["int8"] - flops["fp8"]) / total(operations, "flops")
    assert 0.025 < share < 0.055
    left = [o for o in operations if o.precision == "fp16" and o.name in ("stem", "conv1x1", "conv3x3")]
    bounds = [o.bound(Ceilings(**CEILINGS)) for o in left]
    assert sum(o.count for o in left) == 5
    assert bounds.count("memory") >= 3
