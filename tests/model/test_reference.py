"""The reference model: recorded outputs, published sizes, the details easy to get wrong, and what it refuses."""

import copy
import pickle
from dataclasses import replace

import goldens
import lookalikes
import pytest
import torch
import torch.nn.functional as F
from goldens import TOLERANCE
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conformer_fast.checkpoints.create import create_model
from conformer_fast.model.config import PACKAGED, VARIANTS, ConformerConfig
from conformer_fast.model.functional import attention
from conformer_fast.model.reference import Attention, Conformer, ConformerFeatures, ConformerOutput, FCUUp

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

PUBLISHED = {  # parameters, 10^9 multiply-adds of one 224x224 image
    "tiny-p16": (23_524_704, 5.226),
    "small-p32": (38_853_072, 7.046),
    "small-p16": (37_673_424, 10.599),
    "base-p16": (83_289_136, 23.326),
}


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("case", goldens.cases("official_logits", "mmpretrain_padded_logits"), ids=str)
def test_recorded_logits(case, dtype):
    with torch.no_grad():
        output = case.model(dtype)(case.images(dtype))
    for logits, expected in zip(output, (case.recorded["conv"], case.recorded["trans"]), strict=True):
        assert logits.dtype == dtype
        assert goldens.error(logits, expected) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("case", goldens.cases("official_features"), ids=str)
def test_recorded_features(case, dtype):
    tolerance, recorded = TOLERANCE[dtype], case.recorded
    with torch.no_grad():
        maps, tokens = case.model(dtype).forward_features(case.images(dtype))
    for block, feature_map in zip((4, 8, 11, 12), maps, strict=True):
        mean, std = (recorded[f"map{block}/{moment}"].item() for moment in ("mean", "std"))
        assert feature_map.shape == tuple(recorded[f"map{block}/shape"])
        assert goldens.error(feature_map.flatten()[::101], recorded[f"map{block}/every101"]) < tolerance
        assert abs(feature_map.mean() - mean) < tolerance * std
        assert abs(feature_map.std() - std) < tolerance * std
    assert tokens.shape == tuple(recorded["tokens12/shape"])
    values, expected = tokens.flatten()[::101], torch.from_numpy(recorded["tokens12/every101"])
    of_class = torch.arange(0, tokens.numel(), 101) < tokens.shape[-1]  # a thousand times larger than the others
    for part in (of_class, ~of_class):
        assert goldens.error(values[part], expected[part]) < tolerance


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name):
    parameters, gigamacs = PUBLISHED[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = Conformer(VARIANTS[name]).eval()
        model(torch.empty(1, 3, 224, 224))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert f"{counter.get_total_flops() / 2e9:.3f}" == str(gigamacs)


@pytest.mark.parametrize("features_only", [False, True])
def test_gradients_reach_every_parameter(small_config, features_only):
    model = lookalikes.fill(Conformer(small_config, features_only)).eval()
    output = model(goldens.image(2, 40, 56))
    tensors = output if not features_only else (*output.maps, output.tokens)
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in tensors).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all() or not gradient.any()] == []


def test_norm_epsilons(small_model):
    norms = nn.BatchNorm2d | nn.LayerNorm
    found = {name: module.eps for name, module in small_model.named_modules() if isinstance(module, norms)}
    assert len(found) == 1 + (4 + 2) + (11 + 12) + 1  # stem, block 1, blocks 2 and 3, last
    assert {name for name, eps in found.items() if eps == 1e-5} == {"bn1", "trans_norm"}
    assert {eps for name, eps in found.items() if name not in ("bn1", "trans_norm")} == {1e-6}


def test_class_token_doubles_in_a_coupled_block(small_model):
    block = small_model.coupled_block(2)
    with torch.no_grad():
        for module in (block.trans_block.attn.proj, block.trans_block.mlp.fc2, block.squeeze_block.ln):
            module.weight.zero_()
            module.bias.zero_()
        tokens = torch.randn(2, 1 + 4 * 6, 48)
        _, result = block(torch.randn(2, 64, 16, 24), tokens)
    torch.testing.assert_close(result[:, 0], 2 * tokens[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(result[:, 1:], tokens[:, 1:], rtol=0, atol=0)


@pytest.mark.parametrize(("heads", "scale"), [(1, 0.1), (3, 8**-0.5), (6, 1.0)])
def test_attention_is_softmax_of_scaled_products(heads, scale):
    qkv = torch.randn(2, 5, 3 * 24, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, -1))  # each (B, T, heads, D)
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) * scale).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    torch.testing.assert_close(attention(qkv, heads, scale), expected)


def test_attention_scale_is_that_of_one_head():
    module = Attention(48, num_heads=2).double()
    tokens = torch.randn(1, 3, 48, dtype=torch.float64)
    expected = module.proj(attention(module.qkv(tokens), 2, 1 / 24**0.5))
    torch.testing.assert_close(module(tokens), expected)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 8, 12])
def test_up_sampling_repeats_whole_tokens(stride):
    unit = FCUUp(5, 6, stride).eval()
    tokens = torch.randn(2, 1 + 3 * 11, 6)
    with torch.no_grad():
        small = FCUUp(5, 6, 1).eval()
        small.load_state_dict(unit.state_dict())
        expected = small(tokens, 3, 11).repeat_interleave(stride, 2).repeat_interleave(stride, 3)
        assert torch.equal(unit(tokens, 3 * stride, 11 * stride), expected)


CUSTOM = {
    "depth-6": {"depth": 6},
    "gray": {"in_channels": 1},
    "multispectral": {"in_channels": 5},
    "head-32": {"embed_dim": 96, "num_heads": 3},
    "one-head": {"num_heads": 1},
    "patch-32": {"patch_size": 32},
    "patch-48": {"patch_size": 48},
    "ratio-3": {"channel_ratio": 3},
    "one-class": {"num_classes": 1},
}


@pytest.mark.parametrize("sizes", CUSTOM.values(), ids=CUSTOM)
def test_custom_configurations(small_config, sizes):
    config = replace(small_config, **sizes)
    model = lookalikes.fill(Conformer(config)).eval()
    H, W = 2 * config.patch_size, 3 * config.patch_size
    images = torch.randn(2, config.in_channels, H, W)
    with torch.no_grad():
        features = model.forward_features(images)
        output = model(images)
    assert features.tokens.shape == (2, 1 + 2 * 3, config.embed_dim)
    third = config.depth // 3
    strides = {block: 4 * 2 ** ((block - 1) // third) for block in range(1, config.depth)} | {config.depth: 32}
    for block, feature_map in zip(config.feature_blocks, features.maps, strict=True):
        stride = strides[block]
        assert feature_map.shape == (2, config.map_channels(block), -(-H // stride), -(-W // stride))
    assert all(logits.shape == (2, config.num_classes) for logits in output)
    assert all(logits.isfinite().all() for logits in output)


@pytest.mark.parametrize(
    ("height", "width", "tokens", "last_map"),
    [
        (16, 16, 1, (1, 1)),
        (17, 16, 2, (1, 1)),
        (64, 16, 4, (2, 1)),
        (33, 47, 9, (2, 2)),
        (95, 97, 42, (3, 4)),
        (50, 70, 20, (2, 3)),
    ],
)
def test_any_size_that_holds_a_patch(small_model, height, width, tokens, last_map):
    with torch.no_grad():
        features = small_model.forward_features(goldens.image(1, height, width))
    assert features.tokens.shape[1] == 1 + tokens
    assert features.maps[-1].shape[-2:] == last_map


@pytest.mark.parametrize(("height", "width"), [(48, 80), (45, 78)], ids=["whole", "partly-seen"])
def test_padding_changes_nothing_where_none_is_needed(small_model, height, width):
    strict = Conformer(small_model.config, pad="none").eval()
    strict.load_state_dict(small_model.state_dict())
    images = goldens.image(2, height, width)
    with torch.no_grad():
        for padded, exact in zip(small_model(images), strict(images), strict=True):
            assert torch.equal(padded, exact)


def test_padding_is_zeros_below_and_right_of_the_stem_map(small_model):
    seen = []
    small_model.conv_1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = goldens.image(1, 37, 50)
    with torch.no_grad():
        small_model(images)
        stem = F.max_pool2d(small_model.bn1(small_model.conv1(images)).relu(), 3, 2, 1)
    assert seen[0].shape == (1, 64, 12, 16)
    assert torch.equal(seen[0][..., :10, :13], stem)
    assert not seen[0][..., 10:, :].any()
    assert not seen[0][..., 13:].any()


@pytest.mark.parametrize(("patch", "height", "width", "stem"), [(16, 64, 68, "16x17"), (32, 241, 224, "61x56")])
def test_without_padding_partial_patches_are_refused(small_config, patch, height, width, stem):
    model = Conformer(replace(small_config, patch_size=patch), pad="none").eval()
    with pytest.raises(ValueError, match=rf"a {height}x{width} image gives a {stem} stem map") as caught:
        model(torch.zeros(1, 3, height, width))
    assert f"multiples of {patch}" in str(caught.value)
    assert "pad='stem'" in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3), (), (32,)], ids=str)
def test_other_shapes_are_refused(small_model, shape):
    with pytest.raises(ValueError, match=r"must have shape \(batch, 3, height, width\), got") as caught:
        small_model(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 15), (0, 16), (1, 1)])
def test_images_smaller_than_a_patch_are_refused(small_model, height, width):
    with pytest.raises(ValueError, match=rf"images are {height}x{width}, smaller than one 16x16 patch"):
        small_model(torch.zeros(1, 3, height, width))


def test_unknown_padding_is_refused(small_config):
    with pytest.raises(ValueError, match="unknown pad 'reflect'; choose one of stem, none"):
        Conformer(small_config, pad="reflect")


def test_an_image_does_not_see_its_neighbors(small_model):
    model, images = small_model.double(), goldens.image(3, 40, 56, torch.float64)
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            for logits, alone in zip(together, model(images[index : index + 1]), strict=True):
                torch.testing.assert_close(logits[index : index + 1], alone)


def test_features_only_has_neither_heads_nor_their_norm(small_config, small_model):
    model = Conformer(small_config, features_only=True).eval()
    kept = {name: value for name, value in small_model.state_dict().items() if name in model.state_dict()}
    heads = {"trans_norm", "trans_cls_head", "conv_cls_head"}
    assert {name.split(".")[0] for name in small_model.state_dict().keys() - kept.keys()} == heads
    model.load_state_dict(kept)
    images = goldens.image(2, 50, 70)
    with torch.no_grad():
        features, expected = model(images), small_model.forward_features(images)
    assert isinstance(features, ConformerFeatures)
    assert torch.equal(features.tokens, expected.tokens)
    assert [torch.equal(*maps) for maps in zip(features.maps, expected.maps, strict=True)] == [True] * 3


def test_the_heads_read_the_features(small_model):
    images = goldens.image(2, 50, 70)
    with torch.no_grad():
        features, output = small_model.forward_features(images), small_model(images)
        again = small_model.forward_head(features)
        pooled, class_token = small_model.pool(features.maps[-1], features.tokens)
        normed = F.layer_norm(features.tokens[:, 0], (48,), *small_model.trans_norm.parameters(), 1e-5)
    assert isinstance(output, ConformerOutput)
    assert torch.equal(output.conv_logits, again.conv_logits)
    assert torch.equal(output.trans_logits, again.trans_logits)
    torch.testing.assert_close(pooled, features.maps[-1].flatten(2).mean(-1))
    torch.testing.assert_close(class_token, normed)


def test_output_is_a_named_tuple_whose_score_is_the_sum():
    conv, trans = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, -3.0, 1.0]])
    output = ConformerOutput(conv, trans)
    first, second = output
    assert first is conv
    assert second is trans
    assert output._fields == ("conv_logits", "trans_logits")
    assert output.logits.tolist() == [[1.5, -1.0, 1.0]]
    torch.testing.assert_close(output.probabilities, torch.tensor([[1.5, -1.0, 1.0]]).softmax(-1))
    torch.testing.assert_close(output.probabilities.sum(-1), torch.ones(1))


@pytest.mark.parametrize("features_only", [False, True])
def test_create_model_is_ready_to_evaluate(small_config, features_only):
    model = create_model(small_config, num_classes=4, features_only=features_only, pad="none")
    assert not any(module.training for module in model.modules())
    assert (model.config.num_classes, model.features_only, model.pad) == (4, features_only, "none")


def test_create_model_by_name():
    assert create_model("digits").config == PACKAGED["digits"]
    model = create_model("digits", num_classes=3)
    assert model.conv_cls_head.out_features == model.trans_cls_head.out_features == 3


@pytest.mark.parametrize("name", ["resnet50", "conformer-tiny-p16"])
def test_create_model_names_the_variants(name):
    with pytest.raises(ValueError, match=rf"unknown Conformer '{name}'; choose one of tiny-p16, .*digits"):
        create_model(name)


def test_new_models_are_initialized_as_the_paper_trains_them(small_config):
    model = Conformer(small_config)
    assert all(not module.bias.any() for module in model.modules() if isinstance(module, nn.Linear))
    weights = torch.cat([module.weight.flatten() for module in model.modules() if isinstance(module, nn.Linear)])
    assert abs(weights.std() - 0.02) < 2e-4  # of 1e5 values
    assert 0.01 < model.cls_token.std() < 0.03
    assert not torch.equal(model.cls_token, Conformer(small_config).cls_token)


def test_copies_and_pickles_compute_the_same(small_model):
    images = goldens.image(1, 32, 32)
    with torch.no_grad():
        expected = small_model(images)
        for other in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
            assert torch.equal(other(images).logits, expected.logits)


def test_any_memory_format(small_model):
    model, images = small_model.double(), goldens.image(2, 50, 70, torch.float64)
    strided = torch.stack([images, images + 1], dim=-1)[..., 0]
    with torch.no_grad():
        expected = model(images).logits
        for other in (images.to(memory_format=torch.channels_last), strided):
            torch.testing.assert_close(model(other).logits, expected)
        last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(last, expected)


def test_configuration_of_a_model_is_the_one_given():
    config = ConformerConfig(depth=3, embed_dim=64, num_heads=2, num_classes=5)
    assert create_model(config).config is config
