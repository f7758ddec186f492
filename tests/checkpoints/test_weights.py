"""Every dialect, container, prefix and format loads; everything else is refused in words."""

import argparse
import copy
import errno
import itertools
import json
import os
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import lookalikes
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from conformer_fast.checkpoints import download
from conformer_fast.checkpoints.create import create_model
from conformer_fast.checkpoints.dialects import recognize, to_dialect
from conformer_fast.checkpoints.reading import read_state_dict
from conformer_fast.checkpoints.weights import load_weights, resolve_weights
from conformer_fast.checkpoints.writing import convert, save_weights
from conformer_fast.errors import CheckpointError
from conformer_fast.model.config import PACKAGED, VARIANTS, ConformerConfig
from conformer_fast.model.reference import Conformer

CONFIG = ConformerConfig(embed_dim=64, num_heads=1, depth=3, channel_ratio=1, num_classes=7)
KEYS = json.loads((Path(__file__).parents[1] / "data" / "checkpoint_keys.json").read_text())
COUNTER = "num_batches_tracked"
HEADS = ("trans_cls_head.", "conv_cls_head.")

REFERENCE = lookalikes.fill(Conformer(CONFIG))
DETECTOR_PARTS = {"neck.lateral.weight": torch.ones(2), "rpn_head.bias": torch.ones(2), "roi_head.fc": torch.ones(1)}


def _mmdetection():
    backbone = lookalikes.fill(lookalikes.MMDetectionBackbone(CONFIG)).state_dict()
    return {f"backbone.{name}": tensor for name, tensor in backbone.items()} | DETECTOR_PARTS


STATES = {
    "official": lookalikes.fill(lookalikes.OfficialConformer(CONFIG)).state_dict(),
    "official-backbone": lookalikes.fill(lookalikes.MMDetectionBackbone(CONFIG)).state_dict(),
    "mmpretrain": lookalikes.fill(lookalikes.MMPretrainClassifier(CONFIG)).state_dict(),
    "mmpretrain-backbone": lookalikes.fill(lookalikes.MMPretrainBackbone(CONFIG)).state_dict(),
    "mmdetection": _mmdetection(),
}
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


def _weights(model):
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}


def _counters(state):
    return sum(name.endswith(COUNTER) for name in state)


def _assert_loaded(model, expected=REFERENCE):
    wanted = expected.state_dict()
    for name, tensor in _weights(model).items():
        assert torch.equal(tensor, wanted[name]), name


def _altered(**changes):
    """The reference's state dict with some tensors replaced, or removed where None."""
    state = dict(REFERENCE.state_dict()) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


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
    _assert_loaded(model)
    assert report.dialect == dialect.removesuffix("-backbone")
    assert report.matched == len(_weights(model))
    assert report.matched + report.ignored == len(state)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dialect", STATES)
def test_every_dialect_loads_from_safetensors(tmp_path, dialect, prefix):
    path = tmp_path / "weights.pth"  # the content decides, not the name
    safetensors.torch.save_file({prefix + name: tensor for name, tensor in STATES[dialect].items()}, path)
    model = Conformer(CONFIG, features_only=dialect not in ("official", "mmpretrain"))
    assert load_weights(model, path).dialect == dialect.removesuffix("-backbone")
    _assert_loaded(model)


@pytest.mark.parametrize("container", MORE_CONTAINERS)
@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_other_containers(dialect, container):
    model = Conformer(CONFIG)
    assert load_weights(model, {"epoch": 3, container: STATES[dialect]}).dialect == dialect
    _assert_loaded(model)


@pytest.mark.parametrize("prefix", MORE_PREFIXES)
@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_other_prefixes(dialect, prefix):
    model = Conformer(CONFIG)
    load_weights(model, {prefix + name: tensor for name, tensor in STATES[dialect].items()})
    _assert_loaded(model)


def test_two_models_in_one_state_dict_are_refused():
    state = REFERENCE.state_dict()
    both = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="not a Conformer's weights"):
        recognize(both)


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_what_tools_add_is_ignored(dialect):
    state = torch.optim.swa_utils.AveragedModel(nn.Module()).state_dict()
    state |= {f"module.{name}": tensor for name, tensor in STATES[dialect].items()}
    state |= {"total_ops": torch.zeros(1), "module.conv_trans_2.cnn_block.conv1.total_params": torch.zeros(1)}
    model = Conformer(CONFIG)
    assert load_weights(model, state).ignored == 3 + _counters(state)
    _assert_loaded(model)


def test_no_classes_are_a_backbone(tmp_path):
    """The official class with num_classes=0 keeps an empty head of the CNN."""
    path = tmp_path / "weights.pth"
    state = {name: tensor for name, tensor in STATES["official"].items() if not name.startswith(HEADS)}
    torch.save(state | {"conv_cls_head.weight": torch.ones(0, 256), "conv_cls_head.bias": torch.ones(0)}, path)
    model = Conformer(CONFIG, features_only=True)
    load_weights(model, path)
    _assert_loaded(model)
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
    _assert_loaded(model)
    load_weights(model, path, ema=True)
    _assert_loaded(model, ema)
    load_weights(model, {"state_dict": REFERENCE.state_dict(), "state_dict_ema": ema.state_dict()}, ema=True)
    _assert_loaded(model, ema)


def test_ema_is_refused_where_there_is_none(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(REFERENCE.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"bare\.pth: holds no model_ema"):
        read_state_dict(path, ema=True)


def test_a_training_frameworks_log_is_skipped_and_its_code_not_run(tmp_path, monkeypatch):
    class HistoryBuffer:
        restored = False

        def __init__(self, values):
            self.values = np.array(values)

        def __setstate__(self, state):
            HistoryBuffer.restored = True

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "epoch_300.pth"
    torch.save({"state_dict": STATES["mmpretrain"], "message_hub": {"loss": HistoryBuffer([1.0, 2.0])}}, path)
    assert read_state_dict(path).keys() == STATES["mmpretrain"].keys()
    assert not HistoryBuffer.restored


def test_what_is_read_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(REFERENCE.state_dict(), path)
    state = read_state_dict(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(state["cls_token"], REFERENCE.cls_token)


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
    assert load_weights(model, full).ignored == _counters(full) > 0
    assert load_weights(model, bare).ignored == 0
    assert model.bn1.num_batches_tracked == 0
    _assert_loaded(model)


def test_features_only_ignores_heads_and_their_norm():
    model = Conformer(CONFIG, features_only=True)
    state = STATES["mmpretrain"]
    assert load_weights(model, state).ignored == 6 + _counters(state)
    _assert_loaded(model)


def test_coverage_is_counted_and_the_first_keys_named():
    state = _altered(conv1__weight=torch.ones(64, 3, 5, 5), cls_token=None, extra__weight=torch.ones(1))
    message = _refusal(state)
    total = len(_weights(REFERENCE))
    assert message.startswith("official weights do not fit")
    assert f"{total - 2} of the model's {total} tensors match" in message
    assert "1 missing: cls_token" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 misshapen: conv1.weight (64, 3, 5, 5) for (64, 3, 7, 7)" in message


def test_only_the_first_five_of_many_keys_are_named():
    state = {name: tensor for name, tensor in REFERENCE.state_dict().items() if "conv_trans_3." not in name}
    missing = [name for name in _weights(REFERENCE) if "conv_trans_3." in name]
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
    assert "trans_norm.bias holds NaN or infinite values" in _refusal(_altered(trans_norm__bias=poisoned))


def test_values_must_be_finite_in_the_models_dtype():
    too_large = torch.full((64,), 1e300, dtype=torch.float64)
    assert "trans_norm.bias holds NaN or infinite values as torch.float32" in _refusal(
        _altered(trans_norm__bias=too_large)
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_must_be_floating_point(dtype):
    message = _refusal(_altered(trans_norm__bias=torch.ones(64, dtype=dtype)))
    assert f"trans_norm.bias holds {dtype} values" in message


@pytest.mark.parametrize("name", ["bn1.running_var", "conv_trans_3.expand_block.bn.running_var"])
def test_variances_must_not_be_negative(name):
    """The root of one is NaN, which a maximum with 0 hides: finite and wrong."""
    variance = REFERENCE.state_dict()[name].clone()
    variance[1] = -0.25
    assert f"{name} holds a negative variance, -0.25" in _refusal(dict(REFERENCE.state_dict()) | {name: variance})


def test_another_models_names_are_refused():
    resnet = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}
    with pytest.raises(
        CheckpointError, match=r"not a Conformer's .* conv1\.weight, layer1\.0\.conv1\.weight, fc\.bias"
    ):
        recognize(resnet)


def test_an_empty_state_dict_is_refused():
    with pytest.raises(CheckpointError, match="not a Conformer's"):
        recognize({})


def test_two_keys_of_one_meaning_are_refused():
    with pytest.raises(CheckpointError, match=r"mean cls_token; one of them is module\.cls_token"):
        recognize(_altered(module__cls_token=torch.ones(1, 1, 64)))


def test_detector_parts_are_counted_as_ignored():
    found = recognize(STATES["mmdetection"])
    assert found.ignored == len(DETECTOR_PARTS) + _counters(STATES["mmdetection"])
    assert found.num_classes is None
    assert found.config() == replace(CONFIG, num_classes=ConformerConfig().num_classes)


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_names_shapes_and_sizes(variant, dialect):
    published = {name: tuple(shape) for name, shape in KEYS[dialect][variant].items()}
    with torch.device("meta"):
        state = to_dialect(Conformer(VARIANTS[variant]).state_dict(), dialect)
        found = recognize({name: torch.empty(shape) for name, shape in published.items()})
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published
    assert found.dialect == dialect
    assert found.config() == VARIANTS[variant]


@pytest.mark.parametrize(
    ("dialect", "lookalike"),
    [("official", lookalikes.OfficialConformer), ("mmpretrain", lookalikes.MMPretrainClassifier)],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_lookalikes_have_the_published_names_in_order(variant, dialect, lookalike):
    with torch.device("meta"):
        state = lookalike(VARIANTS[variant]).state_dict()
    published = [(name, tuple(shape)) for name, shape in KEYS[dialect][variant].items()]
    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == published


@pytest.mark.parametrize("name", [*VARIANTS, *PACKAGED])
def test_a_variants_sizes_tell_its_heads(name, recwarn):
    config = replace((VARIANTS | PACKAGED)[name], num_classes=3)
    with torch.device("meta"):
        state = Conformer(config).state_dict()
    assert recognize(state).config() == config
    assert not recwarn


def test_heads_of_other_sizes_are_assumed_with_a_warning_or_told():
    config = replace(PACKAGED["digits"], mlp_ratio=3)
    found = recognize(Conformer(config).state_dict())
    with pytest.warns(UserWarning, match="1 of 64 channels are assumed"):
        assert found.config().num_heads == 1
    assert found.config(num_heads=4) == config
    odd = recognize(Conformer(replace(config, embed_dim=96)).state_dict())
    with pytest.raises(CheckpointError, match="96 channels, not a multiple of 64"):
        odd.config()


@pytest.mark.parametrize(
    "changes",
    [{"in_channels": 1}, {"mlp_ratio": 3}, {"depth": 6}, {"patch_size": 32}, {"channel_ratio": 2}, {"num_classes": 2}],
    ids=lambda changes: "-".join(changes),
)
def test_sizes_are_read_from_the_shapes(changes):
    config = replace(CONFIG, **changes)
    with torch.device("meta"):
        assert recognize(Conformer(config).state_dict()).config() == config


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cls_token": torch.ones(64)}, r"cls_token has shape \(64,\)"),
        ({"cls_token": torch.ones(1, 1, 0)}, r"cls_token has shape \(1, 1, 0\)"),
        ({"cls_token": None}, "no cls_token"),
        ({"trans_patch_conv__weight": torch.ones(64, 64, 5, 5)}, "patch_size must be a multiple of 16, got 20"),
        ({"conv_1__conv3__weight": torch.ones(96, 16, 1, 1)}, "96 output channels, not a multiple of 64"),
        ({"conv_trans_9__x": torch.ones(1)}, "3 conv_trans blocks, the last one called 9"),
    ],
)
def test_sizes_that_cannot_be_read_are_refused(changes, problem):
    with pytest.raises(CheckpointError, match=problem):
        recognize(_altered(**changes)).config()


def test_create_model_with_weights_draws_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    state = torch.get_rng_state()
    model = create_model(CONFIG, weights=path)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.tensor(0) if name.endswith(COUNTER) else REFERENCE.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images).logits, copy.deepcopy(REFERENCE).eval()(images).logits)


def test_create_model_takes_the_files_class_count(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path, "mmpretrain")
    model = create_model(replace(CONFIG, num_classes=10), weights=str(path))
    assert model.config == CONFIG
    _assert_loaded(model)
    with pytest.raises(CheckpointError, match="for 7 classes, but the model has 10"):
        create_model(CONFIG, weights=str(path), num_classes=10)


@pytest.mark.parametrize("dialect", ["official", "mmpretrain"])
def test_converting_there_and_back_changes_nothing(tmp_path, dialect):
    source, there, back = tmp_path / "in.pth", tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    other = {"official": "mmpretrain", "mmpretrain": "official"}[dialect]
    state = {name: tensor.half() if "conv_1." in name else tensor for name, tensor in STATES[dialect].items()}
    state = {name: tensor + 9 if name.endswith(COUNTER) else tensor for name, tensor in state.items()}
    torch.save(state, source)
    assert convert(source, there, other).dialect == dialect
    assert convert(there, back, dialect).matched == len(state)
    result = safetensors.torch.load_file(back)
    assert result.keys() == state.keys()
    assert all(torch.equal(result[name], state[name]) for name in state)
    assert all(result[name].dtype == state[name].dtype for name in state)
    assert recognize(safetensors.torch.load_file(there)).dialect == other


def test_converting_keeps_only_the_conformer(tmp_path):
    source, target = tmp_path / "detector.pth", tmp_path / "backbone.safetensors"
    torch.save({"state_dict": STATES["mmdetection"], "meta": {}}, source)
    assert convert(source, target).ignored == len(DETECTOR_PARTS)
    assert read_state_dict(target).keys() == STATES["official-backbone"].keys()


def test_converting_refuses_its_own_input(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    before, link = path.read_bytes(), tmp_path / "link.safetensors"
    link.hardlink_to(path)
    for target in (tmp_path / "." / "weights.safetensors", link):
        with pytest.raises(CheckpointError, match="which is read and would be lost; give another name"):
            convert(path, target, "mmpretrain")
        assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "problem"), [("weights.pth", "ends in .safetensors"), ("no/weights.safetensors", "does not exist")]
)
def test_weights_are_not_written_elsewhere(tmp_path, name, problem):
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        save_weights(REFERENCE.state_dict(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fifo.safetensors", "folder.safetensors", "a\0.safetensors"])
def test_what_is_no_file_is_not_replaced(tmp_path, name):
    os.mkfifo(tmp_path / "fifo.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "source.pth").write_bytes(b"is not read")
    with pytest.raises(CheckpointError, match=r"not a plain file|is a folder|cannot be a file's name"):
        save_weights(REFERENCE.state_dict(), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"not a plain file|is a folder|cannot be a file's name"):
        convert(tmp_path / "source.pth", tmp_path / name)
    assert (tmp_path / "fifo.safetensors").is_fifo()


def test_mmdetection_names_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="choose 'official' or 'mmpretrain'"):
        save_weights(REFERENCE.state_dict(), tmp_path / "weights.safetensors", "mmdetection")


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    before = path.read_bytes()

    def breaks(source, target):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.replace", breaks)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: cannot be written (no space left on device)")):
        save_weights(REFERENCE.state_dict(), path, "mmpretrain")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(REFERENCE.state_dict(), path)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tensors_that_share_memory_can_be_written(tmp_path):
    path = tmp_path / "weights.safetensors"
    shared = torch.arange(12.0).view(3, 4)
    save_weights({"conv_trans_2.a": shared, "conv_trans_2.b": shared.t()}, path)
    assert torch.equal(read_state_dict(path)["conv_trans_2.b"], shared.t())


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
