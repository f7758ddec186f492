"""The weights of one small model, in every dialect, and what the tests of checkpoints ask of them."""

import lookalikes
import torch

from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.reference import Conformer

CONFIG = ConformerConfig(embed_dim=64, num_heads=1, depth=3, channel_ratio=1, num_classes=7)
COUNTER = "num_batches_tracked"
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


def weights_of(model):
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}


def counters(state):
    return sum(name.endswith(COUNTER) for name in state)


def assert_loaded(model, expected=REFERENCE):
    wanted = expected.state_dict()
    for name, tensor in weights_of(model).items():
        assert torch.equal(tensor, wanted[name]), name


def altered(**changes):
    """The reference's state dict with some tensors replaced, or removed where None."""
    state = dict(REFERENCE.state_dict()) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}
