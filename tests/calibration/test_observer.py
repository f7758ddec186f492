"""Products read what the reference model's own modules read, by the names of the inference model's products."""

from dataclasses import replace

import goldens
import lookalikes
import pytest
import torch
import torch.nn.functional as F
from eight_bits import largest_inputs

from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import addend_of, result_of
from conformer_fast.model.config import VARIANTS
from conformer_fast.model.reference import Attention, Bottleneck, Conformer, TransformerBlock


class Watched:
    """Hooks on the modules of a reference model; `largest` is what its calls have shown, by the product's name."""

    def __init__(self, model: Conformer) -> None:
        self.largest: dict[str, float] = {}
        self.see("stem", model.conv1)
        self.see("patch_embed", model.trans_patch_conv)
        self.see_bottleneck("conv_1", model.conv_1)
        self.see_transformer("trans_1", model.trans_1)
        for index in range(2, model.config.depth + 1):
            name, block = f"conv_trans_{index}", model.coupled_block(index)
            self.see_bottleneck(f"{name}.cnn_block", block.cnn_block)
            self.see_bottleneck(f"{name}.fusion_block", block.fusion_block)
            self.see_transformer(f"{name}.trans_block", block.trans_block)
            self.see(f"{name}.up", block.expand_block.conv_project)  # without the class token, at token resolution
            # The reference pools after its projection. Both are linear: the product of the inference model reads this.
            stride = block.squeeze_block.stride
            self.see(f"{name}.down.project", block.squeeze_block, lambda x, S=stride: F.avg_pool2d(x, S))

    def see(self, name, module, read=lambda x: x) -> None:
        module.register_forward_pre_hook(lambda module, inputs: self.keep(name, read(inputs[0])))

    def see_bottleneck(self, name: str, block: Bottleneck) -> None:
        for part in ("conv1", "conv2", "conv3"):  # conv2 of a fusion block has the tokens' map added
            self.see(f"{name}.{part}", block.get_submodule(part))
        if block.project:
            self.see(f"{name}.residual", block.residual_conv)
            block.residual_bn.register_forward_hook(
                lambda module, inputs, output: self.keep(addend_of(f"{name}.conv3"), output)
            )
        else:
            self.see(addend_of(f"{name}.conv3"), block)

    def see_transformer(self, name: str, block: TransformerBlock) -> None:
        for part, module in {
            "qkv": block.attn.qkv,
            "proj": block.attn.proj,
            "fc1": block.mlp.fc1,
            "fc2": block.mlp.fc2,
        }.items():
            self.see(f"{name}.{part}", module)
        block.attn.qkv.register_forward_hook(
            lambda module, inputs, output: self.keep(result_of(f"{name}.qkv"), output * self.shares(block.attn))
        )

    @staticmethod
    def shares(attention: Attention) -> torch.Tensor:
        """Of the scale of the scores, what queries and keys have of it; (3C,)."""
        scale = attention.qkv.weight.new_tensor((attention.qkv.in_features // attention.num_heads) ** -0.5)
        keys = 2.0 ** (scale.log2() / 2).round()
        return torch.stack([scale / keys, keys, torch.ones_like(keys)]).repeat_interleave(attention.qkv.in_features)

    def keep(self, name: str, value: torch.Tensor) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), value.abs().max().item())


def watched_ranges(model: Conformer, *batches: torch.Tensor) -> dict[str, float]:
    """What `model`, which keeps the hooks, shows in float64."""
    watched = Watched(model.double())
    with torch.no_grad():
        for images in batches:
            model(images.double())
    return watched.largest


CASES = {
    "small": {},
    "deep": {"depth": 6},
    "patch-32": {"patch_size": 32},
    "patch-48-one-head": {"patch_size": 48, "num_heads": 1},
    "gray-ratio-3": {"in_channels": 1, "channel_ratio": 3},
}


@pytest.mark.parametrize("features_only", [False, True], ids=["classifier", "features"])
@pytest.mark.parametrize("case", CASES)
def test_ranges_are_what_the_reference_reads(case, features_only, small_config):
    config = replace(small_config, **CASES[case])
    model = lookalikes.fill(Conformer(config, features_only=features_only)).eval()
    batches = [torch.randn(B, config.in_channels, H, W) for B, H, W in [(1, 64, 96), (3, 50, 70)]]
    measured = largest_inputs(lower(model), batches)
    expected = watched_ranges(model, *batches)
    assert measured.keys() == expected.keys()
    for name, largest in expected.items():
        assert largest > 0
        assert measured[name] == pytest.approx(largest, rel=1e-4), name


def test_a_published_variant():
    model = lookalikes.fill(Conformer(VARIANTS["tiny-p16"])).eval()
    measured = largest_inputs(lower(model), [goldens.image(2, 64, 96)])
    assert measured == pytest.approx(watched_ranges(model, goldens.image(2, 64, 96)), rel=1e-3)


def test_products_and_what_bottlenecks_add_have_ranges(small_model):
    """And nothing else: heads stay as they are, and no residual of the tokens is rounded."""
    network = lower(small_model)
    ranges = largest_inputs(network, [goldens.image(1, 64, 96)])
    weights = {name.removesuffix(".weight") for name, value in network.named_buffers() if value.ndim > 1}
    products = weights - {"conv_head", "trans_head", "cls_token"}
    bottlenecks = {name.removesuffix(".conv1") for name in products if name.endswith(".conv1")}
    assert len(bottlenecks) == 1 + 2 * 2
    attended = {result_of(name) for name in products if name.endswith(".qkv")}
    assert ranges.keys() == products | {addend_of(f"{name}.conv3") for name in bottlenecks} | attended


def test_ranges_of_an_inner_output_are_those_of_what_it_needs(small_model):
    ranges = largest_inputs(lower(small_model).with_outputs(["1.map"]), [goldens.image(1, 64, 96)])
    assert {name.partition(".")[0] for name in ranges} == {"stem", "conv_1"}


def test_the_largest_of_all_images_counts(small_model):
    network = lower(small_model)
    images = torch.cat([goldens.image(4, 64, 96) * scale for scale in (1, 3, 0.5)])
    together = largest_inputs(network, [images])
    for sizes in ([1] * 12, [5, 7], [4, 4, 4], [11, 1]):
        assert largest_inputs(network, images.split(sizes)) == pytest.approx(together, rel=1e-5)
    apart = [largest_inputs(network, [batch]) for batch in images.split(4)]
    for name, largest in together.items():
        assert largest == pytest.approx(max(ranges[name] for ranges in apart), rel=1e-5)
    assert together["patch_embed"] > 1.5 * apart[0]["patch_embed"]


def test_signs_do_not_matter(small_model):
    """The most negative value counts as the most positive does: what norms return has both."""
    network = lower(small_model)
    before = largest_inputs(network, [goldens.image(1, 64, 96)])
    norm = network.trans_1.norm1
    norm.weight.neg_()
    norm.bias.neg_()
    after = largest_inputs(network, [goldens.image(1, 64, 96)])
    assert after["trans_1.qkv"] == before["trans_1.qkv"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 64, 96), r"images must have shape \(batch, 3, height, width\), got \(1, 1, 64, 96\)"),
        ((3, 64, 96), r"images must have shape \(batch, 3, height, width\), got \(3, 64, 96\)"),
        ((1, 3, 8, 96), "images are 8x96, smaller than one 16x16 patch; resize them first"),
    ],
)
def test_images_that_do_not_fit_the_model(shape, message, small_model):
    with pytest.raises(ValueError, match=message):
        largest_inputs(lower(small_model), [goldens.image(1, 64, 96), torch.zeros(shape)])


def test_the_model_is_untouched(small_model):
    network = lower(small_model)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = goldens.image(1, 64, 96)
    scores = network(images)
    largest_inputs(network, [images])
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(map(torch.equal, network(images), scores))
    assert torch.is_grad_enabled()


def test_autocast_around_it_changes_nothing(small_model):
    network, images = lower(small_model), goldens.image(1, 64, 96)
    plain = largest_inputs(network, [images])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert largest_inputs(network, [images]) == plain
