"""Detectors from checkpoints of the official fork: what is read, and what is refused."""

from __future__ import annotations

import pytest
import torch
from detector_samples import SMALL, small

import conformer_fast as cf
from conformer_fast.model.recipe import MEAN, STD

CONFIG = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""
NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def checkpoint(tmp_path):
    """Writes one as mmdetection 2 does; what is given replaces or adds to its state dict, None takes away."""

    def write(detector=None, **changes):
        state = {**(detector or small()).state_dict()}
        for name, value in changes.items():
            name = name.replace("__", ".")
            state.pop(name) if value is None else state.update({name: value})
        file = tmp_path / "detector.pth"
        meta = {"CLASSES": NAMES, "config": CONFIG, "epoch": 12}
        torch.save({"state_dict": state, "meta": meta, "optimizer": {"state": {}}}, file)
        return file

    return write


def test_all_is_read(checkpoint):
    found = cf.create_detector(SMALL, checkpoint())
    assert (found.config.backbone, found.config.masks, found.config.num_classes) == (SMALL.backbone, True, 5)
    assert (found.config.channels, found.config.hidden) == (32, 64)
    assert found.recipe == cf.Recipe(labels=NAMES, mean=MEAN, std=STD)
    assert not found.training
    for name, tensor in small().state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_without_masks_and_behind_a_wrapper(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match="1 of 64 channels are assumed"):
        found = cf.create_detector(weights=checkpoint(small(masks=False)))
    assert not found.config.masks
    assert (found.config.num_classes, found.config.channels, found.config.hidden) == (5, 32, 64)
    file = tmp_path / "wrapped.pth"
    torch.save({f"module.{name}": tensor for name, tensor in small().state_dict().items()}, file)
    assert cf.create_detector(SMALL, file).config.masks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neck__fpn_convs__2__conv__bias": None}, "1 missing: neck.fpn_convs.2.conv.bias"),
        ({"backbone__conv_1__bn1__bias": None}, "1 missing: backbone.conv_1.bn1.bias"),
        ({"roi_head__extra": torch.zeros(1)}, "1 unexpected: roi_head.extra"),
        ({"rpn_head__rpn_cls__bias": torch.zeros(4)}, r"1 misshapen: rpn_head.rpn_cls.bias \(4,\) for \(3,\)"),
        ({"rpn_head__rpn_cls__bias": torch.full((3,), torch.nan)}, "NaN or infinite"),
        ({"rpn_head__rpn_cls__bias": torch.zeros(3, dtype=torch.int64)}, "int64"),
        ({"roi_head__bbox_head__fc_cls__weight": None}, "no detector's weights"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(checkpoint, changes, message):
    with pytest.raises(cf.CheckpointError, match=message) as raised:
        cf.create_detector(SMALL, checkpoint(**changes))
    assert "detector.pth" in str(raised.value)


def test_another_detector_than_asked_for(checkpoint):
    with pytest.raises(cf.CheckpointError, match="the file has channels=32, the detector channels=256"):
        cf.create_detector("mask-rcnn", checkpoint())
    with pytest.raises(cf.ArgumentError, match="unknown detector 'yolo'"):
        cf.create_detector("yolo")


def test_what_would_be_ignored_is_refused(checkpoint):
    for given in ({"num_classes": 7}, {"variant": "small-p16"}):
        with pytest.raises(cf.ArgumentError, match="are for a detector's name"):
            cf.create_detector(weights=checkpoint(), **given)
        with pytest.raises(cf.ArgumentError, match="a DetectorConfig has its backbone"):
            cf.create_detector(SMALL, checkpoint(), **given)
    with pytest.raises(cf.ArgumentError, match="num_classes must be a whole number"):
        cf.create_detector("mask-rcnn", num_classes=0)


def test_a_classifier_is_no_detector_and_the_reverse(checkpoint, tmp_path):
    file = tmp_path / "classifier.safetensors"
    cf.save_weights(cf.create_model(SMALL.backbone).state_dict(), file)
    with pytest.raises(cf.CheckpointError, match=r"it holds a Conformer alone.*create_model loads that"):
        cf.create_detector(weights=file)
    with pytest.raises(cf.CheckpointError, match="detector with create_detector"):
        cf.create_model(SMALL.backbone, checkpoint())
    assert cf.create_model(SMALL.backbone, checkpoint(), features_only=True).features_only


def test_random_values():
    found = cf.create_detector(SMALL)
    assert found.config == SMALL
    assert cf.create_detector(SMALL).state_dict().keys() == small().state_dict().keys()
