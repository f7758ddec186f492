"""explain(): its maps are what the heads and the last block really compute, by autograd and by hooks, at any size."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import goldens
import lookalikes
import numpy as np
import pytest
import torch
from toy_backend import Toy

import conformer_fast as cf
from conformer_fast.datasets.digits import load_digits_split
from conformer_fast.engines import registry
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.reference import Conformer, ConformerFeatures

SIZES = [(96, 96), (48, 112), (133, 50)]  # pixels; whole patches of 16 in the first two, no whole ones in the last
PATCHES = (16, 32, 48)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@cache
def model(kind: int | str) -> Conformer:
    """The packaged digits, or two heads of 24 channels at this patch size. It is shared: do not change it."""
    if kind == "digits":
        return cf.create_model("digits", "packaged")
    sizes = {"channel_ratio": 1, "embed_dim": 48, "num_heads": 2, "depth": 3, "mlp_ratio": 2, "num_classes": 7}
    return lookalikes.fill(Conformer(cf.ConformerConfig(patch_size=kind, **sizes))).eval()


def each_kind_and_size(test):
    test = pytest.mark.parametrize("size", SIZES, ids=str)(test)
    return pytest.mark.parametrize("kind", [*PATCHES, "digits"])(test)


def attended(reference: Conformer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the last block of a run: what its attention computes qkv to be, (B, T, 3, heads, D), and returns before the
    projection, (B, T, heads, D); with a graph between the two."""
    reference, seen = copy.deepcopy(reference), {}
    attn = reference.coupled_block(reference.config.depth).trans_block.attn

    def keep_qkv(module, inputs, output):
        seen["qkv"] = output.detach().requires_grad_()
        return seen["qkv"]

    attn.qkv.register_forward_hook(keep_qkv)
    attn.proj.register_forward_pre_hook(lambda module, inputs: seen.update(out=inputs[0]))
    reference(images)
    heads = reference.config.num_heads
    return seen["qkv"], seen["out"].unflatten(-1, (heads, -1))


@each_kind_and_size
def test_the_mean_of_the_conv_map_and_the_bias_are_the_score(kind, size):
    reference, images = model(kind), torch.randn(3, 3, *size)
    found = cf.explain(reference, images, [1, 0, 3])
    assert found.classes == (1, 0, 3)
    with torch.no_grad():
        scores = reference(images).conv_logits
    for index, label in enumerate(found.classes):
        mean = found.conv[index].mean() + reference.conv_cls_head.bias[label]
        torch.testing.assert_close(mean, scores[index, label], **CLOSE)


@each_kind_and_size
def test_the_conv_map_is_gradient_times_map(kind, size):
    reference, images = model(kind), torch.randn(2, 3, *size)
    found = cf.explain(reference, images, [2, 5])
    with torch.no_grad():
        features = reference.forward_features(images)
    last = features.maps[-1].requires_grad_()
    scores = reference.forward_head(ConformerFeatures((last,), features.tokens)).conv_logits
    (gradient,) = torch.autograd.grad(scores[0, 2] + scores[1, 5], last)
    places = last.shape[-2] * last.shape[-1]
    torch.testing.assert_close(found.conv, (gradient * last).sum(1).detach() * places, **CLOSE)


@each_kind_and_size
def test_the_trans_map_is_the_gradient_by_the_values(kind, size):
    """The class token's output changes with the values of a patch by the share of attention that this one has."""
    reference, images = model(kind), torch.randn(2, 3, *size)
    qkv, out = attended(reference, images)
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), qkv)
    shares = gradient.unflatten(-1, (3, *out.shape[2:]))[:, :, 2]  # (B, T, heads, D), the same in all D
    torch.testing.assert_close(shares, shares[..., :1].expand_as(shares), **CLOSE)
    trans = cf.explain(reference, images).trans
    torch.testing.assert_close(trans.flatten(1), shares[:, 1:, :, 0].mean(-1), **CLOSE)


@each_kind_and_size
def test_the_trans_map_is_the_softmax(kind, size):
    reference, images = model(kind), torch.randn(2, 3, *size)
    qkv, out = attended(reference, images)
    q, k, _ = qkv.detach().double().unflatten(-1, (3, *out.shape[2:])).unbind(2)  # (B, T, heads, D)
    trans = cf.explain(reference, images).trans
    for index, shares in enumerate(trans):
        heads = [
            torch.softmax(k[index, :, head] @ q[index, 0, head] / q.shape[-1] ** 0.5, 0) for head in range(q.shape[2])
        ]
        torch.testing.assert_close(shares.flatten(), (sum(heads) / len(heads))[1:].float(), **CLOSE)
    assert (trans >= 0).all()
    assert (trans.sum((1, 2)) < 1).all()


@pytest.mark.parametrize("kind", PATCHES)
@pytest.mark.parametrize("size", [*SIZES, (49, 97)], ids=str)
def test_sizes_of_the_maps(kind, size):
    found = cf.explain(model(kind), torch.zeros(2, 3, *size))
    trans = tuple(-(-side // kind) for side in size)
    assert found.trans.shape == (2, *trans)
    assert found.conv.shape == (2, *(-(-kind * side // 32) for side in trans))


def test_a_place_of_the_conv_map_is_centered_where_it_says():
    """Without what comes from the tokens, which see everything, its score depends on as much before as behind."""
    reference = copy.deepcopy(model(16))
    for index in (2, 3):
        torch.nn.init.zeros_(reference.coupled_block(index).expand_block.bn.weight)
        torch.nn.init.zeros_(reference.coupled_block(index).expand_block.bn.bias)
    images = torch.randn(16, 3, 256, 320, requires_grad=True)
    *_, (last, _) = reference.forward_blocks(images)
    (gradient,) = torch.autograd.grad(last[:, :, 4, 5].sum(), images)
    for axis, center in ((2, 4 * 32), (3, 5 * 32)):
        others = tuple({0, 1, 2, 3} - {axis})
        read = gradient.abs().sum(others).nonzero().flatten().tolist()
        assert (read[0] + read[-1]) / 2 == center
        assert read[-1] - read[0] < 128  # and no border cuts it


def test_each_patch_is_where_it_says():
    """The tokens' order is that of the map's places, and these pixels are what such a token is made of."""
    images = torch.randn(1, 3, 48, 80)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        reference, changed = copy.deepcopy(model(16)), images.clone()
        changed[..., 16 * row + 4 : 16 * row + 12, 16 * column + 4 : 16 * column + 12] += 1
        with torch.no_grad():
            stems = [reference.trans_patch_conv(_stem(reference, pixels)) for pixels in (images, changed)]
        differs = (stems[0] - stems[1]).abs().sum((0, 1))
        assert differs.shape == cf.explain(reference, images).trans.shape[1:]
        assert differs.argmax() == row * 5 + column


def _stem(reference: Conformer, images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(reference.bn1(reference.conv1(images)).relu(), 3, stride=2, padding=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_variants(variant):
    reference, images = goldens.build(variant, torch.float32), goldens.image(1, 64, 96)
    found = cf.explain(reference, images)
    patch = VARIANTS[variant].patch_size
    assert (found.conv.shape, found.trans.shape) == ((1, 2, 3), (1, 64 // patch, 96 // patch))
    (label,) = found.classes
    with torch.no_grad():
        output = reference(images)
    assert label == output.logits.argmax()
    mean = found.conv.mean() + reference.conv_cls_head.bias[label]
    torch.testing.assert_close(mean, output.conv_logits[0, label], **CLOSE)


def test_the_likeliest_class_is_that_of_both_heads():
    """Neither head's alone."""
    reference, images = copy.deepcopy(model(16)), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for head, raised in (("conv", {3: 9.0, 5: 8.0}), ("trans", {1: 9.0, 5: 8.0})):
            bias = torch.zeros(7)
            bias[list(raised)] = 1000 * torch.tensor(list(raised.values()))
            reference.get_submodule(f"{head}_cls_head").bias.copy_(bias)
        output = reference(images)
    assert output.conv_logits.argmax(-1).tolist() == [3, 3]
    assert output.trans_logits.argmax(-1).tolist() == [1, 1]
    assert cf.explain(reference, images).classes == (5, 5)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (3, (3, 3)),
        (np.int64(6), (6, 6)),
        (torch.tensor(0), (0, 0)),
        ([4, 2], (4, 2)),
        (torch.tensor([4, 2]), (4, 2)),
        (np.array([4, 2]), (4, 2)),
    ],
    ids=repr,
)
def test_classes_that_are_asked_for(classes, expected):
    images = torch.randn(2, 3, 48, 48)
    found = cf.explain(model(16), images, classes)
    assert found.classes == expected
    assert all(type(label) is int for label in found.classes)
    alone = [cf.explain(model(16), images[[index]], label) for index, label in enumerate(expected)]
    torch.testing.assert_close(found.conv, torch.cat([one.conv for one in alone]), **CLOSE)
    torch.testing.assert_close(found.trans, cf.explain(model(16), images).trans, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (7, cf.ArgumentError, "a class must be less than 7, the number of the model's classes, got 7"),
        ([0, 10**30], cf.ArgumentError, "less than 7, .* got 1000000"),
        (-1, cf.ArgumentError, "a class must be a whole number, at least 0, got -1"),
        ([0, -2], cf.ArgumentError, "at least 0, got -2"),
        (1.5, cf.ArgumentTypeError, r"a class must be a whole number, at least 0, got 1\.5"),
        (True, cf.ArgumentError, "at least 0, got True"),
        ([0, None], cf.ArgumentTypeError, "at least 0, got None"),
        ("cat", cf.ArgumentTypeError, r"classes must be a list, such as \['cat'\]"),
        ({0, 1}, cf.ArgumentTypeError, "classes must be a list, in an order"),
        ([], cf.ArgumentError, "classes must be one for all images or one for each, got 0 for 2"),
        ([0, 1, 2], cf.ArgumentError, "one for each, got 3 for 2"),
        (torch.tensor([0]), cf.ArgumentError, "one for each, got 1 for 2"),
    ],
    ids=repr,
)
def test_classes_that_cannot_be(classes, error, message):
    with pytest.raises(error, match=message):
        cf.explain(model(16), torch.zeros(2, 3, 48, 48), classes)


def same(one: cf.Explanation, other: cf.Explanation) -> bool:
    return one.classes == other.classes and torch.equal(one.conv, other.conv) and torch.equal(one.trans, other.trans)


@pytest.mark.parametrize("make", [lookalikes.OfficialConformer, lookalikes.MMPretrainClassifier])
def test_others_models(make):
    other = lookalikes.fill(make(model(16).config)).eval()
    images = torch.randn(2, 3, 48, 64)
    assert same(cf.explain(other, images), cf.explain(model(16), images))


def test_a_compiled_model_is_explained_by_its_reference():
    fast, images = cf.compile(model(16), backend="reference"), torch.randn(2, 3, 48, 64)
    assert same(cf.explain(fast, images, 4), cf.explain(model(16), images, 4))


def test_a_loaded_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "BACKENDS", {"toy": "toy_backend:Toy", **registry.BACKENDS})
    loaded = cf.load(cf.compile(model(16), backend=Toy()).save(tmp_path / "bundle"))
    with pytest.raises(cf.ArgumentError, match=r"a loaded model has .*; give the model that it was made from"):
        cf.explain(loaded, torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: cf.compile(it, backend="reference")])
def test_a_backbone_is_refused(wrap):
    backbone = wrap(Conformer(model(16).config, features_only=True).eval())
    with pytest.raises(cf.ArgumentError, match="the model is a backbone, without scores of classes; give one with"):
        cf.explain(backbone, torch.zeros(1, 3, 48, 48))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(cf.ArgumentError, match=r"training mode; call model\.eval\(\) first"):
        cf.explain(copy.deepcopy(model(16)).train(), torch.zeros(1, 3, 48, 48))


def test_scores_that_are_no_numbers_are_refused():
    state = copy.deepcopy(model("digits").state_dict())
    state["trans_cls_head.weight"].fill_(3e38)
    with pytest.raises(cf.ArgumentError, match="scores are NaN or infinite; check the weights"):
        cf.explain(state, torch.zeros(1, 3, 48, 48))


def test_images_that_cannot_be():
    narrow = Conformer(model(16).config, pad="none").eval()
    for reference, images, message in (
        (model(16), torch.zeros(3, 48, 48), "images must have shape"),
        (model(16), torch.zeros(0, 3, 48, 48), "the batch is empty"),
        (model(16), torch.full((1, 3, 48, 48), torch.nan), "NaN or infinite"),
        (narrow, torch.zeros(1, 3, 48, 50), "resize to multiples of 16 or build the model with pad='stem'"),
    ):
        with pytest.raises(cf.ArgumentError, match=message):
            cf.explain(reference, images)


def test_pixels_are_normalized_as_the_model_was_trained():
    reference = copy.deepcopy(model(16))
    reference.recipe = cf.Recipe(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.randint(256, (2, 3, 48, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in reference.recipe.normalization)
    assert same(cf.explain(reference, pixels), cf.explain(reference, (pixels / 255 - mean) / std))


def test_results_are_plain_fp32_tensors():
    """Whatever the images' type and the caller's modes."""
    images = torch.randn(2, 3, 48, 64).half()
    expected = cf.explain(model(16), images.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert same(cf.explain(model(16), images), expected)
    found = cf.explain(model(16), images.requires_grad_())
    assert same(found, expected)
    for values in (found.conv, found.trans):
        assert (values.dtype, values.requires_grad, values.is_inference()) == (torch.float32, False, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.conv = found.trans


def facts(module: torch.nn.Module) -> list:
    """What of each part may not change, beside its weights."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return [[(part.training, *map(len, map(vars(part).get, hooks))) for part in module.modules()], flags]


def test_the_model_is_not_changed():
    given = copy.deepcopy(model(16))
    fast = cf.compile(given, backend="reference")
    for explained, reference in ((given, given), (fast, fast.reference)):
        weights, before = copy.deepcopy(reference.state_dict()), facts(reference)
        cf.explain(explained, torch.randn(2, 3, 48, 64))
        assert facts(reference) == before
        assert all(torch.equal(values, weights[name]) for name, values in reference.state_dict().items())
        assert all(parameter.grad is None for parameter in reference.parameters())


def test_several_threads_at_once():
    fast = cf.compile(model(16), backend="reference")
    batches = [torch.randn(1 + index % 2, 3, 48, 48 + 16 * (index % 3)) for index in range(24)]
    expected = [cf.explain(fast, batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: cf.explain(fast, batch), batches))
    assert all(map(same, found, expected))


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """A hundred images and labels that the packaged model has never seen."""
    pytest.importorskip("sklearn")
    split = load_digits_split()
    return split.test_images[:100], split.test_labels[:100]


def test_of_two_digits_the_conv_map_finds_the_one_asked_for(digits):
    """Side by side, in a picture twice as wide as those that the model was trained on."""
    images, labels = digits
    differ = labels[:-1] != labels[1:]
    left, right = labels[:-1][differ], labels[1:][differ]
    pairs = torch.cat([images[:-1][differ], images[1:][differ]], -1)
    assert len(pairs) > 80
    for asked, sign in ((left, 1), (right, -1)):
        conv = cf.explain(model("digits"), pairs, asked).conv  # (B, 2, 4)
        assert conv.shape[1:] == (2, 4)
        to_the_left = conv[..., :2].sum((1, 2)) - conv[..., 2:].sum((1, 2))
        assert (sign * to_the_left > 0).double().mean() >= 0.95


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 1])
def test_both_maps_find_a_digit_in_a_corner(row, column, digits):
    """In a picture twice as wide and high, otherwise black."""
    images, labels = digits
    pictures = images.amin((0, 2, 3)).view(1, 3, 1, 1).repeat(100, 1, 128, 128)
    pictures[..., 64 * row : 64 * row + 64, 64 * column : 64 * column + 64] = images
    found = cf.explain(model("digits"), pictures, labels)
    for values in (found.conv, found.trans):
        quarters = torch.nn.functional.avg_pool2d(values, values.shape[-1] // 2).flatten(1)
        assert (quarters.argmax(1) == 2 * row + column).double().mean() >= 0.8
