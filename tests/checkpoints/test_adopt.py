"""What compile() was given: recognized, proved by a trial run, copied, and refused in words when it is no Conformer."""

import copy
import threading
import warnings
from dataclasses import replace

import lookalikes
import pytest
import torch
from torch import nn

from conformer_fast.bundles.manifest import _structure_from_json, _structure_to_json
from conformer_fast.checkpoints.adopt import adopt
from conformer_fast.errors import CheckpointError
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.outputs import Softmax, rebuild, reference_outputs
from conformer_fast.model.reference import Conformer, ConformerFeatures, ConformerOutput

CONFIG = ConformerConfig(embed_dim=64, num_heads=1, depth=3, channel_ratio=1, mlp_ratio=3, num_classes=7)
LOGITS = ("conv_logits", "trans_logits")
MAPS = ("1.map", "2.map", "3.map")


def evaluated(model: nn.Module) -> nn.Module:
    """Filled, in eval mode; `.eval()` of mmpretrain's backbone returns nothing."""
    lookalikes.fill(model)
    model.eval()
    return model


def backbone(out_indices):
    return lookalikes.MMPretrainBackbone(CONFIG, out_indices)


MODULES = {  # how to make it, the names of the outputs it returns
    "classifier": (lambda: Conformer(CONFIG), LOGITS),
    "features": (lambda: Conformer(CONFIG, features_only=True), (*MAPS, "3.tokens")),
    "official": (lambda: lookalikes.OfficialConformer(CONFIG), LOGITS),
    "mmpretrain": (lambda: lookalikes.MMPretrainClassifier(CONFIG), LOGITS),
    "mmpretrain-backbone": (lambda: backbone(-1), ("3.pooled", "3.class_token")),
    "mmpretrain-backbone-unordered": (
        lambda: backbone([-1, 2, 3, 0, 1]),  # one of them twice, two of them nothing
        ("2.pooled", "2.class_token", "3.pooled", "3.class_token"),
    ),
    "mmdetection": (lambda: lookalikes.MMDetectionBackbone(CONFIG), MAPS),
}


class Wrapped(nn.Module):
    """What programs make of the official model to have one tensor."""

    def __init__(self, finish):
        super().__init__()
        self.model = evaluated(lookalikes.OfficialConformer(CONFIG))
        self.finish = finish

    def forward(self, images):
        return self.finish(sum(self.model(images)))


ONE_TENSOR = {
    "sum": lambda logits: logits,
    "sum in a list": lambda logits: [logits],
    "softmax": lambda logits: logits.softmax(-1),
    "softmax in a tuple": lambda logits: (logits.softmax(-1),),
}


def leaves(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [leaf for part in value for leaf in leaves(part)]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=MODULES)
def given(request):
    """A module to compile, and the names of its outputs."""
    make, names = MODULES[request.param]
    return evaluated(make()), names


def test_names_outputs_and_structure(given):
    module, names = given
    source = adopt(module)
    assert source.outputs == names
    batch = images(2, 3, 48, 64)
    with torch.no_grad():
        theirs = module(batch)
        ours = rebuild(source.structure, reference_outputs(source.reference, batch, names))
    assert type(ours) is type(theirs)
    for mine, their in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(mine, their, rtol=0, atol=0)


class WithoutClasses(lookalikes.OfficialConformer):
    """As the official class with num_classes=0: an empty head of the CNN, none of the transformer."""

    def __init__(self):
        super().__init__(CONFIG)
        evaluated(self)
        with warnings.catch_warnings(action="ignore"):  # of a layer without elements
            self.conv_cls_head = nn.Linear(self.reference.conv_cls_head.in_features, 0)
        self.trans_cls_head = nn.Identity()

    def forward(self, images):
        features = self.reference.forward_features(images)
        pooled, class_token = self.reference.pool(features.maps[-1], features.tokens)
        return [self.conv_cls_head(pooled), self.trans_cls_head(class_token)]


def test_without_classes_a_module_is_a_backbone_as_its_state_dict_is():
    model, image = WithoutClasses().eval(), torch.randn(1, 3, 32, 32)
    assert [tuple(leaf.shape) for leaf in model(image)] == [(1, 0), (1, 64)]
    with pytest.warns(UserWarning, match="the model has no classes: taken as a backbone"):
        source = adopt(model)
    same = adopt(model.state_dict())
    assert source.outputs == same.outputs == (*MAPS, "3.tokens")
    assert source.structure == same.structure
    for ours, theirs in zip(*(each.reference(image).maps for each in (source, same)), strict=True):
        assert torch.equal(ours, theirs)
    model.forward = lambda images: [torch.zeros(1, 0), torch.ones(1, 64)]
    with pytest.raises(ValueError, match="computes something else"):
        adopt(model)


@pytest.mark.parametrize("finish", ONE_TENSOR.values(), ids=ONE_TENSOR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_wrapper_may_return_the_sum_or_its_softmax(finish, dtype):
    source = adopt(Wrapped(finish).eval().to(dtype))
    assert source.outputs == ("logits",)
    module = Wrapped(finish).eval().to(dtype).float()
    batch = images(2, 3, 48, 64)
    with torch.no_grad():
        theirs = module(batch)
        ours = rebuild(source.structure, reference_outputs(source.reference, batch, source.outputs))
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_softmax_is_saved_with_its_bundle():
    source = adopt(Wrapped(ONE_TENSOR["softmax in a tuple"]).eval())
    names = rebuild(source.structure, source.outputs)
    assert _structure_from_json(_structure_to_json(names)) == (Softmax(("logits",)),)
    assert type(_structure_from_json(_structure_to_json(names))[0]) is Softmax


@pytest.mark.parametrize(
    "finish",
    [lambda logits: (2 * logits).softmax(-1), lambda logits: logits.softmax(0), lambda logits: logits.sigmoid()],
    ids=["sharper", "over the batch", "sigmoid"],
)
def test_another_function_of_the_sum_is_refused(finish):
    """Also where the scores are nearly equal, and with them every softmax."""
    module = Wrapped(finish).eval()
    with torch.no_grad():
        for head in (module.model.conv_cls_head, module.model.trans_cls_head):
            head.weight.mul_(1e-3)
            head.bias.mul_(1e-3)
    with pytest.raises(ValueError, match="names but computes something else"):
        adopt(module)


def test_the_official_class_by_its_defaults():
    """qkv without bias: as with one of zeros."""
    module = evaluated(lookalikes.OfficialConformer(CONFIG))
    for part in module.modules():
        if hasattr(part, "qkv"):
            part.qkv.bias = None
    reference = adopt(module).reference
    assert torch.equal(reference.trans_1.attn.qkv.bias, torch.zeros(3 * 64))
    some = module.state_dict() | {"trans_1.attn.qkv.bias": torch.ones(3 * 64)}
    with pytest.raises(CheckpointError, match=r"2 missing: conv_trans_2\.trans_block\.attn\.qkv\.bias"):
        adopt(some)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [Conformer, lookalikes.MMPretrainClassifier], ids=["own", "mmpretrain"])
def test_reference_is_fp32_in_eval_mode_without_gradients(make, dtype):
    module = evaluated(make(CONFIG)).to(dtype)
    reference = adopt(module).reference
    assert {tensor.dtype for tensor in reference.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert not any(part.training for part in reference.modules())
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    rounded = evaluated(Conformer(CONFIG)).to(dtype).state_dict()
    assert all(torch.equal(tensor, rounded[name].to(tensor.dtype)) for name, tensor in reference.state_dict().items())


def test_given_module_is_left_as_it_was(given):
    module, _ = given
    next(module.parameters()).requires_grad_(False)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    parts = list(module.modules())
    flags = [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    before = copy.deepcopy(module.state_dict())

    source = adopt(module)
    assert len(calls) == 1  # the trial run
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].view(-1), before[name].view(-1)) for name in before)
    assert [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts] == flags
    assert [(parameter.requires_grad, parameter.grad) for parameter in module.parameters()] == gradients

    ours = {tensor.data_ptr() for tensor in source.reference.state_dict().values()}
    assert ours.isdisjoint(tensor.data_ptr() for tensor in after.values())
    reference_outputs(source.reference, images(1, 3, 32, 32), source.outputs)
    assert len(calls) == 1


def test_random_numbers_are_left_to_other_threads(given, monkeypatch):
    """None is drawn, and none that another thread draws meanwhile comes again."""
    module, _ = given
    torch.manual_seed(0)
    expected, drawn, build = torch.rand(3), [], Conformer.__init__

    def beside_another_thread(self, *args):
        build(self, *args)
        thread = threading.Thread(target=lambda: drawn.append(torch.rand(1)))
        thread.start()
        thread.join()

    monkeypatch.setattr(Conformer, "__init__", beside_another_thread)
    torch.manual_seed(0)
    adopt(module)
    adopt(module.state_dict())
    assert torch.equal(torch.cat([*drawn, torch.rand(1)]), expected)


def test_trial_run_is_in_the_modules_own_precision():
    """Not in that of an autocast around it, whose rounding could pass for another computation."""
    module = evaluated(lookalikes.OfficialConformer(CONFIG))
    seen = []
    module.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adopt(module)
    assert seen == [False]


@pytest.mark.parametrize(
    ("wrap", "features_only"),
    [(torch.compile, False), (torch.compile, True), (nn.DataParallel, False)],
    ids=["torch.compile", "torch.compile-features", "DataParallel"],
)
def test_wrapped(wrap, features_only):
    model = evaluated(Conformer(CONFIG, features_only))
    source = adopt(wrap(model).eval())
    assert type(source.structure) is (ConformerFeatures if features_only else ConformerOutput)
    assert source.outputs == adopt(model).outputs


def test_own_model_keeps_its_padding():
    assert adopt(evaluated(Conformer(CONFIG, pad="none"))).reference.pad == "none"


def test_heads_are_counted_in_the_module():
    config = replace(CONFIG, num_heads=4)  # 16 channels a head: a state dict alone would say one head
    module = evaluated(lookalikes.OfficialConformer(config))
    assert adopt(module).reference.config == config


@pytest.mark.parametrize("conv", [True, False], ids=["conv", "trans"])
def test_head_of_zeros_is_a_conformer(conv):
    module = evaluated(lookalikes.OfficialConformer(CONFIG))
    with torch.no_grad():
        for parameter in (module.conv_cls_head if conv else module.trans_cls_head).parameters():
            parameter.zero_()
    assert adopt(module).outputs == LOGITS


class Scaled(lookalikes.OfficialConformer):
    def forward(self, images):
        return [2 * scores for scores in super().forward(images)]


class Swapped(lookalikes.OfficialConformer):
    def forward(self, images):
        return super().forward(images)[::-1]


class Diverged(lookalikes.OfficialConformer):
    def forward(self, images):
        return [scores + float("nan") for scores in super().forward(images)]


class OwnScaled(Conformer):
    def forward(self, images):
        return ConformerOutput(*(2 * scores for scores in super().forward(images)))


def with_other_eps(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.1
    return module


def with_changing_hook(module):
    module.register_forward_hook(lambda module, inputs, output: type(output)([part + 1 for part in output]))
    return module


WRONG = {
    "scaled": lambda: Scaled(CONFIG),
    "swapped": lambda: Swapped(CONFIG),
    "nan": lambda: Diverged(CONFIG),
    "own subclass": lambda: OwnScaled(CONFIG),
    "other eps": lambda: with_other_eps(lookalikes.OfficialConformer(CONFIG)),
    "own, other eps": lambda: with_other_eps(Conformer(CONFIG)),
    "hook": lambda: with_changing_hook(lookalikes.OfficialConformer(CONFIG)),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_computes_something_else_is_refused(make):
    message = r"names but computes something else \((conv|trans)_logits has a relative error of (nan|\d\S*) on a 32x32"
    with pytest.raises(ValueError, match=message):
        adopt(evaluated(make()))


class Reshaped(lookalikes.OfficialConformer):
    def forward(self, images):
        return [scores[:, :5] for scores in super().forward(images)]


class Named(lookalikes.OfficialConformer):
    def forward(self, images):
        return dict(zip(LOGITS, super().forward(images), strict=True))


class Three(lookalikes.MMDetectionBackbone):
    def forward(self, images):
        return (*super().forward(images), images)


class One(lookalikes.MMDetectionBackbone):
    def forward(self, images):
        return super().forward(images)[-1]


UNKNOWN_FORMS = {
    Reshaped: r"the model's conv_logits has shape \(1, 5\), a Conformer's \(1, 7\)",
    One: "the model returns 1 tensors, which is none of the known forms .* give its state dict instead",
    Named: "the model returns a dict; give its state dict instead",
    Three: "the model returns 4 tensors, which is none of the known forms",
}


@pytest.mark.parametrize("kind", UNKNOWN_FORMS, ids=lambda kind: kind.__name__)
def test_unknown_output_is_refused(kind):
    with pytest.raises(ValueError, match=UNKNOWN_FORMS[kind]):
        adopt(evaluated(kind(CONFIG)))


@pytest.mark.parametrize("part", ["", "conv_trans_2.cnn_block.bn1"], ids=["all", "one-norm"])
@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile], ids=["plain", "torch.compile"])
@pytest.mark.parametrize("make", [Conformer, lookalikes.OfficialConformer], ids=["own", "official"])
def test_training_mode_is_refused_before_anything_runs(make, wrap, part):
    module = evaluated(make(CONFIG))
    module.get_submodule(part).train()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"in training mode; call model.eval\(\) first"):
        adopt(wrap(module))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("make", [Conformer, lookalikes.OfficialConformer], ids=["own", "official"])
def test_weights_that_are_not_finite_are_refused(make):
    module = evaluated(make(CONFIG))
    with torch.no_grad():
        module.conv_cls_head.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"conv_cls_head.weight holds NaN"):
        adopt(module)


def test_model_without_values_is_refused():
    with torch.device("meta"):
        model = Conformer(CONFIG).eval()
    with pytest.raises(CheckpointError, match="cls_token is not a plain dense tensor"):
        adopt(model)


def test_replaced_part_is_refused():
    model = evaluated(Conformer(CONFIG))
    model.conv_trans_3.trans_block.attn.proj = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 64)).eval()
    with pytest.raises(CheckpointError, match=r"conv_trans_3\.trans_block\.attn\.proj"):
        adopt(model)


def test_different_head_counts_are_refused():
    module = evaluated(lookalikes.OfficialConformer(CONFIG))
    module.trans_1.attn.num_heads = 2
    with pytest.raises(ValueError, match=r"different numbers of attention heads: \[1, 2\]"):
        adopt(module)


RESNET = {
    "conv1.weight": torch.ones(64, 3, 7, 7),
    "bn1.weight": torch.ones(64),
    "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1),
    "fc.weight": torch.ones(1000, 512),
}
STATE = evaluated(Conformer(CONFIG)).state_dict()


def headless(*heads, instead=nn.Identity):
    module = evaluated(Conformer(CONFIG))
    for head in heads:
        setattr(module, head, instead().eval())
    return module


GARBAGE = {
    "None": (None, TypeError, "a module, a state dict or a checkpoint's path, not a NoneType"),
    "number": (3, TypeError, "not a int"),
    "bytes": (b"model.pth", TypeError, "not a bytes"),
    "tensor": (torch.ones(3), TypeError, "not a Tensor"),
    "list": ([torch.ones(3)], TypeError, "not a list"),
    "class": (Conformer, TypeError, "not a type"),
    "resnet": (RESNET, CheckpointError, "not a Conformer's weights: .* the first keys are conv1.weight, bn1.weight"),
    "empty": ({}, CheckpointError, "not a Conformer's weights"),
    "numbers": ({"a": 3}, CheckpointError, "not a Conformer's weights"),
    "a number as a key": ({1: torch.ones(2)}, CheckpointError, "not a state dict: the key 1 is no name"),
    "a tuple among the keys": (STATE | {("a\n",): 3}, CheckpointError, r"the key \('a\\n',\) is no name"),
    "a number as a weight": (STATE | {"cls_token": 3}, CheckpointError, r"cls_token has shape \(\)"),
    "NumPy's arrays": (
        {name: tensor.numpy() for name, tensor in STATE.items()},
        CheckpointError,
        "'cls_token' is of type ndarray, not a tensor",
    ),
    "one head": (
        {name: tensor for name, tensor in STATE.items() if "conv_cls_head" not in name},
        CheckpointError,
        "2 missing: conv_cls_head.weight, conv_cls_head.bias",
    ),
    "one head in a module": (headless("conv_cls_head"), CheckpointError, "missing: conv_cls_head.weight"),
    "no heads in a module": (headless("conv_cls_head", "trans_cls_head"), CheckpointError, "without class.* heads"),
    "other heads in a module": (
        headless("conv_cls_head", "trans_cls_head", instead=lambda: nn.Linear(64, 10)),
        CheckpointError,
        "weights for 10 classes, but the model has 7",
    ),
    "other module": (nn.Linear(2, 2).eval(), CheckpointError, "not a Conformer's weights"),
    "no parameters": (nn.ReLU().eval(), CheckpointError, "not a Conformer's weights"),
    "no such file": ("absent.pth", CheckpointError, "absent.pth: no such file"),
}


@pytest.mark.parametrize(("what", "kind", "message"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused(what, kind, message):
    with pytest.raises(kind, match=message):
        adopt(what)


def test_part_of_a_state_dict_is_refused():
    state = evaluated(Conformer(CONFIG)).state_dict()
    del state["conv_trans_2.trans_block.mlp.fc1.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: conv_trans_2.trans_block.mlp.fc1.weight"):
        adopt(state)


def test_rebuild_keeps_every_kind_of_nest():
    structure = [ConformerFeatures(("a", ["b"]), "c"), ("d",), []]
    tensors = tuple(torch.tensor(float(index)) for index in range(4))
    built = rebuild(structure, tensors)
    assert built == [ConformerFeatures((tensors[0], [tensors[1]]), tensors[2]), (tensors[3],), []]
    assert type(built[0]) is ConformerFeatures
