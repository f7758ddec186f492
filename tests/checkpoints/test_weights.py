"""Every dialect, container, prefix and format loads; what does not fit is refused in words."""

import argparse
import itertools
from dataclasses import replace

import lookalikes
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from weights_samples import (
    CONFIG,
    COUNTER,
    REFERENCE,
    STATES,
    altered,
    assert_loaded,
    counters,
    weights_of,
)

from conformer_fast.checkpoints import download
from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.weights import load_weights, resolve_weights
from conformer_fast.errors import CheckpointError
from conformer_fast.model.reference import Conformer

HEADS = ("trans_cls_head.", "conv_cls_head.")
CONTAINERS = {
    "bare": lambda state: state,
    "official": lambda state: {
        "model": state,
        "model_ema": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "epoch": 299,
        "args": argparse.Namespace(model="Conformer_tiny_patch16", lr=1e-3),
    },
    "mmpretrain": lambda state: {"state_dict": state, "meta": {"CLASSES": [*"abcdefg"], "best": np.float64(0.8)}},
    "mmdetection": lambda state: {"state_dict": state, "meta": {"epoch": 12, "seed": np.int64(3)}, "optimizer": {}},
}

PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.module.")
MORE_CONTAINERS = ("model_state_dict", "net", "model_ema", "state_dict_ema")
MORE_PREFIXES = ("model.", "net.", "model.module.", "conformer.", "module.student.base.")


def _refusal(state, model=None):
    """The error of loading `state`; the model must come out of it unchanged."""
    model = model or lookalikes.fill(Conformer(CONFIG), salt="before")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("dialect", "container", "prefix"),
    [pytest.param(*case, id="-".join(case)) for case in itertools.product(STATES, CONTAINERS, PREFIXES)],
)
def test_every_dialect_loads_from_every_torch_file(tmp_path, dialect, container, prefix, zipped):
    path = tmp_path / "weights.pth"
    state = {prefix + name: tensor for name, tensor in STATES[dialect].items()}
    torch.save(CONTAINERS[container](state), path, _use_new_zipfile_serialization=zipped)
    model = Conformer(CONFIG, features_only=dialect not in ("official", "mmpretrain"))
    report = load_weights(model, path)
    assert_loaded(model)
    assert report.dialect == dialect.removesuffix("-backbone")
    assert report.matched == len(weights_of(model))
    assert report.matched + report.ignored == len(state)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dialect", STATES)
def test_every_dialect_loads_from_safetensors(tmp_path, dialect, prefix):
    path = tmp_path / "weights.pth"  # the content decides, not the name
    safetensors.torch.save_file({prefix + name: tensor for name, tensor in STATES[dialect].items()}, path)
    model = Conformer(CONFIG, features_only=dialect not in ("official", "mmpretrain"))
    assert load_weights(model, path).dialect == dialect.removesuffix("-backbone")
    assert_loaded(model)


@pytest.mark.parametrize("container", MORE_CONTAINERS)
@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_other_containers(dialect, container):
    model = Conformer(CONFIG)
    assert load_weights(model, {"epoch": 3, container: STATES[dialect]}).dialect == dialect
    assert_loaded(model)


@pytest.mark.parametrize("prefix", MORE_PREFIXES)
@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_other_prefixes(dialect, prefix):
    model = Conformer(CONFIG)
    load_weights(model, {prefix + name: tensor for name, tensor in STATES[dialect].items()})
    assert_loaded(model)


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_what_tools_add_is_ignored(dialect):
    state = torch.optim.swa_utils.AveragedModel(nn.Module()).state_dict()
    state |= {f"module.{name}": tensor for name, tensor in STATES[dialect].items()}
    state |= {"total_ops": torch.zeros(1), "module.conv_trans_2.cnn_block.conv1.total_params": torch.zeros(1)}
    model = Conformer(CONFIG)
    assert load_weights(model, state).ignored == 3 + counters(state)
    assert_loaded(model)


def test_no_classes_are_a_backbone(tmp_path):
    """The official class with num_classes=0 keeps an empty head of the CNN."""
    path = tmp_path / "weights.pth"
    state = {name: tensor for name, tensor in STATES["official"].items() if not name.startswith(HEADS)}
    torch.save(state | {"conv_cls_head.weight": torch.ones(0, 256), "conv_cls_head.bias": torch.ones(0)}, path)
    model = Conformer(CONFIG, features_only=True)
    load_weights(model, path)
    assert_loaded(model)
    with pytest.raises(CheckpointError, match="without classification heads; build the model with features_only=True"):
        create_model(CONFIG, path)


def test_qkv_without_bias_has_one_of_zeros(tmp_path):
    state = {name: tensor for name, tensor in REFERENCE.state_dict().items() if not name.endswith("qkv.bias")}
    model = lookalikes.fill(Conformer(CONFIG))
    report = load_weights(model, state)
    assert report.matched + report.ignored == len(state)
    assert not model.conv_trans_3.trans_block.attn.qkv.bias.any()
    assert torch.equal(model.trans_1.attn.qkv.weight, REFERENCE.trans_1.attn.qkv.weight)


def test_model_is_preferred_to_model_ema(tmp_path):
    path = tmp_path / "checkpoint"
    ema = lookalikes.fill(Conformer(CONFIG), salt="ema")
    torch.save({"model_ema": ema.state_dict(), "model": REFERENCE.state_dict(), "epoch": 1}, path)
    model = Conformer(CONFIG)
    load_weights(model, path)
    assert_loaded(model)
    load_weights(model, path, ema=True)
    assert_loaded(model, ema)
    load_weights(model, {"state_dict": REFERENCE.state_dict(), "state_dict_ema": ema.state_dict()}, ema=True)
    assert_loaded(model, ema)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(dtype):
    model = Conformer(CONFIG)
    load_weights(model, {name: tensor.to(dtype) for name, tensor in REFERENCE.state_dict().items()})
    assert model.cls_token.dtype == torch.float32
    assert torch.equal(model.cls_token, REFERENCE.cls_token.to(dtype).float())


def test_counters_may_be_missing_and_are_left_alone():
    model = Conformer(CONFIG)
    full = {name: tensor + 5 if name.endswith(COUNTER) else tensor for name, tensor in REFERENCE.state_dict().items()}
    bare = {name: tensor for name, tensor in full.items() if not name.endswith(COUNTER)}
    assert load_weights(model, full).ignored == counters(full) > 0
    assert load_weights(model, bare).ignored == 0
    assert model.bn1.num_batches_tracked == 0
    assert_loaded(model)


def test_features_only_ignores_heads_and_their_norm():
    model = Conformer(CONFIG, features_only=True)
    state = STATES["mmpretrain"]
    assert load_weights(model, state).ignored == 6 + counters(state)
    assert_loaded(model)


def test_coverage_is_counted_and_the_first_keys_named():
    state = altered(conv1__weight=torch.ones(64, 3, 5, 5), cls_token=None, extra__weight=torch.ones(1))
    message = _refusal(state)
    total = len(weights_of(REFERENCE))
    assert message.startswith("official weights do not fit")
    assert f"{total - 2} of the model's {total} tensors match" in message
    assert "1 missing: cls_token" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 misshapen: conv1.weight (64, 3, 5, 5) for (64, 3, 7, 7)" in message


def test_only_the_first_five_of_many_keys_are_named():
    state = {name: tensor for name, tensor in REFERENCE.state_dict().items() if "conv_trans_3." not in name}
    missing = [name for name in weights_of(REFERENCE) if "conv_trans_3." in name]
    message = _refusal(state)
    assert f"{len(missing)} missing: {', '.join(missing[:5])} and {len(missing) - 5} more" in message
    assert missing[5] not in message
    assert "the file has depth=2" not in message  # not a Conformer's depth, so it is not offered as the reason


def test_another_sizes_checkpoint_is_explained_by_its_sizes(tmp_path):
    path = tmp_path / "wide.pth"
    torch.save(Conformer(replace(CONFIG, channel_ratio=2, patch_size=32)).state_dict(), path)
    message = _refusal(path, Conformer(replace(CONFIG, num_heads=2, num_classes=9), features_only=True))
    assert message.startswith(f"{path}: official")
    assert message.endswith(
        "; the file has patch_size=32, the model patch_size=16; the file has channel_ratio=2, the model channel_ratio=1"
    )


@pytest.mark.parametrize("dialect", ["official-backbone", "mmpretrain-backbone", "mmdetection"])
def test_weights_without_heads_ask_for_features_only(dialect):
    message = _refusal(STATES[dialect])
    assert f"{dialect.removesuffix('-backbone')} weights without classification heads" in message
    assert "features_only=True" in message


def test_another_class_count_names_both():
    message = _refusal(REFERENCE.state_dict(), Conformer(replace(CONFIG, num_classes=10)))
    assert "official weights for 7 classes, but the model has 10" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_must_be_finite(value):
    poisoned = REFERENCE.trans_norm.bias.detach().clone()
    poisoned[3] = value
    assert "trans_norm.bias holds NaN or infinite values" in _refusal(altered(trans_norm__bias=poisoned))


def test_values_must_be_finite_in_the_models_dtype():
    too_large = torch.full((64,), 1e300, dtype=torch.float64)
    assert "trans_norm.bias holds NaN or infinite values as torch.float32" in _refusal(
        altered(trans_norm__bias=too_large)
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_must_be_floating_point(dtype):
    message = _refusal(altered(trans_norm__bias=torch.ones(64, dtype=dtype)))
    assert f"trans_norm.bias holds {dtype} values" in message


@pytest.mark.parametrize("name", ["bn1.running_var", "conv_trans_3.expand_block.bn.running_var"])
def test_variances_must_not_be_negative(name):
    """The root of one is NaN, which a maximum with 0 hides: finite and wrong."""
    variance = REFERENCE.state_dict()[name].clone()
    variance[1] = -0.25
    assert f"{name} holds a negative variance, -0.25" in _refusal(dict(REFERENCE.state_dict()) | {name: variance})


def test_resolving_names(tmp_path, monkeypatch):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"x")
    monkeypatch.setattr(download, "fetch", lambda variant: tmp_path / variant)
    assert resolve_weights("tiny-p16", str(path)) == path
    assert resolve_weights("tiny-p16", "pretrained") == tmp_path / "tiny-p16"
    assert resolve_weights("Conformer_tiny_patch16", "pretrained") == tmp_path / "tiny-p16"


@pytest.mark.parametrize(
    ("name", "weights", "problem"),
    [
        (CONFIG, "pretrained", "needs the name of a published variant"),
        ("tiny-p16", "packaged", "only digits has packaged weights, not tiny-p16"),
        (CONFIG, "packaged", "only digits has packaged weights"),
        ("tiny-p16", "nowhere.pth", "nowhere.pth: no such file"),
        ("tiny-p16", ".", "is a folder"),
    ],
)
def test_unresolvable_weights_are_refused(name, weights, problem):
    with pytest.raises(CheckpointError, match=problem):
        resolve_weights(name, weights)
