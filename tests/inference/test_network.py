"""Every rewrite of network.py against the reference in float64, alone and together, and what a fused model promises."""

import copy
import weakref
from dataclasses import replace

import goldens
import lookalikes
import pytest
import torch
from torch import nn

from conformer_fast.inference.fold import fold_attention_scale, fold_batch_norm
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import (
    InferenceBlock,
    InferenceBottleneck,
    InferenceFCUDown,
    InferenceTransformer,
    Norm,
)
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model import functional as CF
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.outputs import LOGITS, observed_outputs
from conformer_fast.model.reference import (
    Bottleneck,
    Conformer,
    ConvTransBlock,
    FCUDown,
    FCUUp,
    TransformerBlock,
    concat_class_token,
    map_to_tokens,
)

DOUBLE = torch.float64
EXACT = 1e-9  # relative: a thousand times what reordered float64 sums differ by, far below any wrong formula


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def random(*shape):
    return torch.randn(shape, dtype=DOUBLE)


def randomized(module):
    """`module` in float64 and eval mode, every parameter and statistic random; variances from 0 to 2."""
    for name, tensor in module.double().state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(2 * torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor) / 4)
    return module.eval()


def assert_same(value, expected):
    assert value.dtype == expected.dtype == DOUBLE
    assert value.shape == expected.shape
    assert expected.any()
    difference = (value - expected).abs().max() / expected.abs().max()
    assert difference < EXACT


def nhwc(feature_map):
    return feature_map.permute(0, 2, 3, 1).contiguous()


def nchw(feature_map):
    return feature_map.permute(0, 3, 1, 2)


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize(("kernel", "stride", "eps"), [(1, 1, 1e-6), (3, 2, 1e-6), (7, 2, 1e-5)])
def test_batch_norm_folds_into_the_convolution(bias, kernel, stride, eps):
    conv = randomized(nn.Conv2d(5, 6, kernel, stride, padding=kernel // 2, bias=bias))
    norm = randomized(nn.BatchNorm2d(6, eps=eps))
    norm.running_var[0] = 0.0  # a dead channel: eps alone is left
    images = random(2, 5, 9, 11)
    weight, shift = fold_batch_norm(conv, norm)
    folded = nn.functional.conv2d(images, weight, shift, stride, kernel // 2)
    for channel in range(6):  # each for itself: the dead one is a thousand times larger than the others
        assert_same(folded[:, channel], norm(conv(images))[:, channel])


def test_batch_norm_is_folded_in_float64_and_rounded_once():
    conv, norm = randomized(nn.Conv2d(5, 6, 3)).float(), randomized(nn.BatchNorm2d(6)).float()
    exact = fold_batch_norm(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
    for folded, expected in zip(fold_batch_norm(conv, norm), exact, strict=True):
        assert torch.equal(folded, expected.float())


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_attention_scale_folds_into_queries_and_keys(heads):
    dim = 8 * 9 * heads  # 72 channels a head: a scale that is no power of two
    qkv = randomized(nn.Linear(dim, 3 * dim))
    tokens = random(2, 5, dim)
    weight, bias = fold_attention_scale(qkv, heads)
    folded = CF.attention(nn.functional.linear(tokens, weight, bias), heads, 1.0)
    assert_same(folded, CF.attention(qkv(tokens), heads, 72**-0.5))
    factors = torch.tensor([0.25] * dim + [1.0] * dim).double()  # of keys and values: nothing is rounded
    assert torch.equal(weight[dim:], qkv.weight[dim:] * factors[:, None])
    assert torch.equal(bias[dim:], qkv.bias[dim:] * factors)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 12])
def test_fcu_down_pools_before_it_projects(stride):
    unit = randomized(FCUDown(5, 24, stride))
    feature_map, tokens = random(2, 5, 3 * stride, 2 * stride), random(2, 1 + 6, 24)
    expected = concat_class_token(tokens[:, :1], unit(feature_map)) + tokens  # as ConvTransBlock.forward
    pooled = nhwc(nn.functional.avg_pool2d(feature_map, stride))
    norm = randomized(nn.LayerNorm(24))
    for found in (
        InferenceFCUDown(unit)(pooled, tokens, Norm(norm)),
        CF.fcu_down(nhwc(feature_map), tokens, *_fcu_weights(unit), stride, *Norm(norm)()),
    ):
        assert_same(found[0], expected)
        assert_same(found[1], norm(expected))


def _fcu_weights(unit):
    return unit.conv_project.weight.flatten(1), unit.conv_project.bias, unit.ln.weight, unit.ln.bias, unit.ln.eps


def test_fcu_down_doubles_the_class_token_whatever_the_map():
    unit = InferenceFCUDown(randomized(FCUDown(5, 24, 2)))
    tokens = random(3, 1 + 6, 24)
    norm = randomized(nn.LayerNorm(24))
    for pooled in (random(3, 2, 3, 5), torch.full((3, 2, 3, 5), torch.inf, dtype=DOUBLE)):
        doubled, normed = unit(pooled, tokens, Norm(norm))
        assert torch.equal(doubled[:, 0], 2 * tokens[:, 0])
        assert_same(normed[:, 0], norm(2 * tokens[:, 0]))


@pytest.mark.parametrize("conv_stride", [1, 2])
@pytest.mark.parametrize("token_stride", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("grid", [(3, 2), (1, 5)], ids=["3x2", "1x5"])
def test_fcu_up_stays_at_token_resolution(token_stride, conv_stride, grid):
    (h, w), S = grid, token_stride
    unit, bottleneck = randomized(FCUUp(6, 24, S)), randomized(Bottleneck(24, 24, conv_stride, project=True))
    tokens, feature_map = random(2, 1 + h * w, 24), random(2, 24, h * S, w * S)
    expected_map, expected_inner = bottleneck(feature_map, unit(tokens, h * S, w * S))
    weight, bias = fold_batch_norm(unit.conv_project, unit.bn)
    token_map = CF.fcu_up(tokens, weight.flatten(1), bias)
    assert token_map.shape == (2, h * w, 6)
    ours = InferenceBottleneck(bottleneck)
    inner = ours.spatial(ours.reduce(nhwc(feature_map), token_map, S))
    assert_same(nchw(inner), expected_inner)
    assert_same(nchw(ours.expand(inner, nhwc(feature_map))), expected_map)


@pytest.mark.parametrize(("stride", "project"), [(1, False), (1, True), (2, True)])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 2)], ids=str)
def test_bottleneck(stride, project, size):
    block = randomized(Bottleneck(24, 24, stride, project))
    feature_map = random(2, 24, *size)
    expected_map, expected_inner = block(feature_map)
    ours = InferenceBottleneck(block)
    reader = InferenceBottleneck(randomized(Bottleneck(24, 24)))
    found, reduced = ours(nhwc(feature_map), reader)
    assert_same(nchw(found), expected_map)
    assert torch.equal(reduced, reader.reduce(found))
    assert_same(nchw(ours.spatial(ours.reduce(nhwc(feature_map)))), expected_inner)


@pytest.mark.parametrize("token_stride", [1, 2, 3, 4])
def test_bottleneck_pools_what_fcu_down_reads(token_stride):
    ours, inner = InferenceBottleneck(randomized(Bottleneck(24, 24))), random(2, 2 * token_stride, 3 * token_stride, 6)
    spatial, pooled = ours.spatial_and_pooled(inner, token_stride, ours.conv3)
    assert_same(spatial, ours.spatial(inner))
    assert_same(nchw(pooled), nn.functional.avg_pool2d(nchw(spatial), token_stride))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_precision_of_products_and_of_tokens(small_model, dtype):
    fused = lower(small_model)
    typed = fused.in_precision(dtype)
    for name, tensor in typed.state_dict().items():
        fine = "norm" in name or name == "cls_token"
        assert tensor.dtype == (torch.float32 if fine else dtype), name
        assert tensor.ndim < 4 or tensor.is_contiguous(memory_format=torch.channels_last)
    assert {tensor.dtype for tensor in fused.state_dict().values()} == {torch.float32}
    images = torch.randn(2, 3, 64, 64)
    names = ["3.tokens", "3.fcu_down", "3.fcu_up", "3.map", "conv_logits", "trans_logits"]
    exact = fused.with_outputs(names)(images)
    dtypes = [torch.float32, torch.float32, dtype, dtype, torch.float32, torch.float32]
    for value, true, expected in zip(typed.with_outputs(names)(images), exact, dtypes, strict=True):
        assert value.dtype == expected
        assert (value - true).norm() < 16 * torch.finfo(dtype).eps * true.norm()


def test_tokens_in_float32_keep_the_doubled_class_token_exact_enough():
    """Kept in float16 too, the last class token of a model of full depth errs more, and one that grows overflows."""
    config = replace(VARIANTS["tiny-p16"], embed_dim=48, num_heads=2, num_classes=7, mlp_ratio=1)
    fused = lower(lookalikes.fill(Conformer(config)).eval()).with_outputs(["12.class_token", "12.tokens"])
    images = torch.randn(2, 3, 32, 32)
    exact = fused.double()(images.double())[0]

    def error(model):
        return ((model(images)[0].double() - exact).norm() / exact.norm()).item()

    typed = fused.float().in_precision(torch.float16)
    rounded = copy.deepcopy(typed).half()
    assert error(typed) < 0.7 * error(rounded)
    for model in (typed, rounded):
        model.cls_token.fill_(60.0)  # doubles eleven times: 122,880 is beyond float16
    assert typed(images)[1].isfinite().all()
    assert not rounded(images)[1].isfinite().all()


def test_transformer_block(small_config):
    block, tokens = randomized(TransformerBlock(small_config)), random(3, 8, 48)
    assert_same(InferenceTransformer(block)(tokens, block.norm1(tokens)), block(tokens))


@pytest.mark.parametrize("index", [2, 3])
def test_coupled_block(small_config, index):
    block = randomized(ConvTransBlock(small_config, index))
    size = [2 * small_config.token_stride(index - 1), 3 * small_config.token_stride(index - 1)]
    feature_map, tokens = random(2, small_config.map_channels(index - 1), *size), random(2, 1 + 6, 48)
    expected_map, expected_tokens = block(feature_map, tokens)
    fused, reader = InferenceBlock(block), InferenceBottleneck(block.fusion_block)
    reduced = fused.cnn_block.reduce(nhwc(feature_map))
    for following in (None, reader):
        result, passed_on, result_tokens, _, _ = fused(nhwc(feature_map), [reduced], tokens, following)
        assert_same(nchw(result), expected_map)
        assert len(passed_on) == (following is not None)
    assert torch.equal(passed_on[0], reader.reduce(result))
    assert_same(result_tokens, expected_tokens)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 50)])
def test_stem_and_patch_embedding(small_config, height, width):
    model, images = randomized(Conformer(small_config)), random(2, 3, height, width)
    seen = []
    model.conv_1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.trans_1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.forward_features(images)
    expected_map, expected_tokens = seen
    stem_map = CF.stem(images, *fold_batch_norm(model.conv1, model.bn1), small_config.stem_stride)
    assert_same(nchw(stem_map), expected_map)
    project, norm = model.trans_patch_conv, model.trans_1.norm1
    patches, normed = CF.patch_embed(stem_map, model.cls_token, project.weight, project.bias, *Norm(norm)())
    assert_same(patches, expected_tokens)
    assert_same(normed, norm(expected_tokens))
    assert_same(patches[:, 1:], map_to_tokens(model.trans_patch_conv(expected_map)))


def test_only_the_class_row_is_normalized(small_config):
    model, feature_map, tokens = randomized(Conformer(small_config)), random(2, 256, 3, 2), random(2, 7, 48)
    norm = model.trans_norm
    tokens[:, 1:] = torch.nan
    pooled, class_token = CF.pool(nhwc(feature_map), tokens, norm.weight, norm.bias, norm.eps)
    assert_same(pooled, feature_map.mean((2, 3)))
    assert_same(class_token, norm(tokens[:, 0]))
    for value, expected in zip((pooled, class_token), model.pool(feature_map, tokens), strict=True):
        assert_same(value, expected)


def test_both_heads_together(small_config):
    model, feature_map, tokens = randomized(Conformer(small_config)), random(2, 256, 3, 2), random(2, 7, 48)
    norm, conv, trans = model.trans_norm, model.conv_cls_head, model.trans_cls_head
    logits = CF.heads(
        nhwc(feature_map), tokens, norm.weight, norm.bias, norm.eps, conv.weight, conv.bias, trans.weight, trans.bias
    )
    assert_same(logits[0], conv(feature_map.mean((2, 3))))
    assert_same(logits[1], trans(norm(tokens)[:, 0]))
    assert_same(logits[2], logits[0] + logits[1])


def assert_fused_model_is_exact(model, images):
    fused = lower(model)
    assert_outputs_are_exact(fused.with_outputs(fused.output_names), model, images)


def assert_outputs_are_exact(fused, model, images):
    values = fused(images)
    for name, value, expected in zip(
        fused.outputs, values, observed_outputs(model, images, fused.outputs), strict=True
    ):
        difference = ((value - expected).abs().max() / expected.abs().max()).item()
        assert value.shape == expected.shape, name
        assert difference < EXACT, name


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants(variant):
    patch = VARIANTS[variant].patch_size
    assert_fused_model_is_exact(goldens.build(variant, DOUBLE), goldens.image(1, 2 * patch, 3 * patch, DOUBLE))


CONFIGS = {
    "small": {},
    "deep": {"depth": 6},
    "patch-32": {"patch_size": 32},
    "patch-48": {"patch_size": 48},
    "gray-head-32-ratio-3": {"in_channels": 1, "embed_dim": 96, "num_heads": 3, "channel_ratio": 3},
}


@pytest.mark.parametrize("size", [(1, 64, 96), (3, 50, 71), (1, 97, 48)], ids=str)
@pytest.mark.parametrize("sizes", CONFIGS.values(), ids=CONFIGS)
def test_custom_configurations(small_config, sizes, size):
    model = lookalikes.fill(Conformer(replace(small_config, **sizes))).double().eval()
    B, H, W = size
    assert_fused_model_is_exact(model, random(B, model.config.in_channels, H, W))


def test_what_a_block_computed_goes_when_the_next_is_done(small_config):
    """Unless it was asked for: so the memory that a model needs does not grow with its depth."""
    fused = lower(Conformer(replace(small_config, depth=6)).eval())

    def alive_after_each_block(outputs) -> list[int]:
        made: list[weakref.ref] = []
        alive: list[int] = []

        def count(module, inputs, results) -> None:
            feature_map, reduced, *others = results
            made.extend(map(weakref.ref, [feature_map, *reduced, *others]))
            alive.append(sum(tensor() is not None for tensor in made))

        model = fused.with_outputs(outputs)
        for index in range(2, 7):
            model.get_submodule(f"conv_trans_{index}").register_forward_hook(count)
        model(goldens.image(1, 32, 32))
        return alive

    assert alive_after_each_block(["logits"]) == [5, 7, 7, 7, 6]  # what it returns, and the two that it read
    asked = [f"{index}.fcu_down" for index in range(2, 7)]
    assert alive_after_each_block(asked) == [5, 8, 9, 10, 10]


def test_features_only(small_config):
    model = lookalikes.fill(Conformer(small_config, features_only=True)).double().eval()
    fused = lower(model)
    assert fused.output_names == tuple(
        [f"{block}.{kind}" for block in (1, 2, 3) for kind in ("map", "tokens")]
        + [f"{block}.{kind}" for block in (2, 3) for kind in ("fcu_down", "fcu_up")]
    )
    assert_fused_model_is_exact(model, goldens.image(2, 50, 71, DOUBLE))


def test_output_names(small_model):
    fused = lower(small_model)
    kinds = ("map", "tokens", "pooled", "class_token")
    assert fused.outputs == ("conv_logits", "trans_logits")
    assert fused.output_names == tuple(
        ["conv_logits", "trans_logits", "logits"]
        + [f"{block}.{kind}" for block in (1, 2, 3) for kind in kinds]
        + [f"{block}.{kind}" for block in (2, 3) for kind in ("fcu_down", "fcu_up")]
    )


@pytest.mark.parametrize(
    "outputs",
    [
        ["3.map"],
        ["2.class_token"],
        ("3.tokens", "conv_logits", "1.map"),
        ("2.fcu_up", "2.fcu_down"),
        ["trans_logits"],
        ["logits"],
    ],
    ids=str,
)
def test_with_outputs_returns_those_in_that_order(small_model, outputs):
    model = small_model.double()
    fused = lower(model).with_outputs(outputs)
    assert fused.outputs == tuple(outputs)
    assert_outputs_are_exact(fused, model, goldens.image(1, 40, 56, DOUBLE))


def test_with_outputs_shares_the_weights_and_leaves_the_model_alone(small_model):
    fused = lower(small_model)
    other = fused.with_outputs(["1.map"]).with_outputs(["2.tokens"])
    assert fused.outputs == ("conv_logits", "trans_logits")
    assert other.outputs == ("2.tokens",)
    ours, theirs = fused.state_dict(), other.state_dict()
    assert [tensor.data_ptr() for tensor in ours.values()] == [tensor.data_ptr() for tensor in theirs.values()]
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("ranges", [{}, {"trans_1.qkv": 5.0, "conv_1.conv3": 5.0, "conv_1.conv3.addend": 5.0}], ids=len)
@pytest.mark.parametrize("change", [nn.Module.half, lambda model: model.to("meta")], ids=["half", "to"])
def test_casts_and_moves_of_what_with_outputs_returns_leave_the_model_alone(change, ranges, small_model):
    """The weights, and the scales of products in 8 bits."""
    fused, image = lower(small_model).quantized(Quantization("int8", ranges)), goldens.image(1, 32, 32)
    before, expected = {name: value.clone() for name, value in fused.state_dict().items()}, fused(image)
    changed = change(fused.with_outputs(["1.map"])).state_dict()
    assert all(
        (value.dtype, value.device) != (before[name].dtype, before[name].device) or value.dtype == torch.int8
        for name, value in changed.items()
    )
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    assert {value.dtype for value in fused.state_dict().values()} - {torch.int8} == {torch.float32}
    assert all(map(torch.equal, fused(image), expected))


@pytest.mark.parametrize("outputs", [["4.map"], ["0.map"], ["1.fcu_up"], ["conv_logits", "sum"]], ids=str)
def test_with_outputs_refuses_unknown_names(small_model, outputs):
    with pytest.raises(ValueError, match="no such outputs") as caught:
        lower(small_model).with_outputs(outputs)
    assert "this model has conv_logits, trans_logits, logits, 1.map" in str(caught.value)
    with pytest.raises(TypeError, match=r"outputs must be a list, such as \['3.map'\]"):
        lower(small_model).with_outputs("3.map")


@pytest.mark.parametrize("outputs", [[], ["1.map", "1.map"]], ids=str)
def test_with_outputs_refuses_none_and_the_same_twice(small_model, outputs):
    with pytest.raises(ValueError, match="one or more different names") as caught:
        lower(small_model).with_outputs(outputs)
    assert str(outputs) in str(caught.value)


def test_a_part_in_training_mode_is_refused(small_model):
    small_model.conv_1.bn1.train()
    with pytest.raises(ValueError, match="a part of it, is in training mode"):
        lower(small_model)


def test_a_features_model_returns_its_features(small_config):
    model = lookalikes.fill(Conformer(small_config, features_only=True)).double().eval()
    image = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        maps, tokens = model(image)
        for ours, theirs in zip(lower(model)(image), (*maps, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_features_have_no_logits(small_config):
    with pytest.raises(ValueError, match=r"no such outputs: 'conv_logits'; this model has 1.map"):
        lower(Conformer(small_config, features_only=True).eval()).with_outputs(["conv_logits"])


def test_the_given_model_is_untouched(small_model):
    before = copy.deepcopy(small_model)
    fused = lower(small_model)
    fused(goldens.image(1, 32, 32))
    for buffer in fused.buffers():
        buffer.zero_()
    after = small_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.state_dict().items())
    assert all(parameter.requires_grad for parameter in small_model.parameters())
    assert not any(module.training for module in small_model.modules())
    assert [name for name, _ in before.named_modules()] == [name for name, _ in small_model.named_modules()]


def test_no_memory_is_shared_with_the_given_model(small_model):
    fused = lower(small_model)
    expected = fused(goldens.image(1, 32, 32))
    theirs = {tensor.untyped_storage().data_ptr() for tensor in small_model.state_dict().values()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in fused.state_dict().values()}
    for tensor in small_model.state_dict().values():
        tensor.zero_()
    for value, same in zip(fused(goldens.image(1, 32, 32)), expected, strict=True):
        assert torch.equal(value, same)


def test_nothing_in_it_trains(small_model):
    with torch.enable_grad():
        fused = lower(small_model)
        output = fused(goldens.image(1, 32, 32))
    assert not list(fused.parameters())
    assert not any(buffer.requires_grad for buffer in fused.buffers())
    assert not any(module.training for module in fused.modules())
    assert not any(value.requires_grad for value in output)


def test_training_mode_is_refused(small_model):
    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\) first"):
        lower(small_model.train())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_dtype_is_the_models(small_model, dtype):
    fused = lower(small_model.to(dtype))
    assert {buffer.dtype for buffer in fused.buffers()} == {dtype}
    assert {value.dtype for value in fused(goldens.image(1, 32, 32, dtype))} == {dtype}


def test_copies_compute_the_same(small_model):
    images = goldens.image(1, 32, 48)
    fused = lower(small_model)
    restored = lower(lookalikes.fill(copy.deepcopy(small_model), "other values").eval())
    restored.load_state_dict(fused.state_dict())
    for other in (copy.deepcopy(fused), restored):
        for value, expected in zip(other(images), fused(images), strict=True):
            assert torch.equal(value, expected)


def test_copies_share_weights_and_nothing_else(small_model):
    """What is done to a copy, the model does not see."""
    network, batch = lower(small_model), goldens.image(1, 32, 32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(batch)
    ranges = dict.fromkeys(network.quantizable, 4.0)
    quantized = network.quantized(Quantization("int8", ranges))
    for copied in (network.with_outputs(LOGITS), network.in_precision(torch.float32), quantized):
        assert copied.norm.weight.data_ptr() == network.norm.weight.data_ptr()
        copied.register_forward_hook(lambda *_: pytest.fail("the copy's"))
        copied.stem.register_buffer("another", torch.ones(1))
        copied.half()
    assert all(map(torch.equal, network(batch), expected))
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
