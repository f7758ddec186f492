"""The real mmpretrain, where it is installed: the lookalikes are like it, and compiling it changes no output."""

import lookalikes
import pytest
import torch

import conformer_fast as cf

pytest.importorskip("mmpretrain")
from mmpretrain.models import Conformer as RealBackbone
from mmpretrain.models import ConformerHead, ImageClassifier

pytestmark = pytest.mark.filterwarnings("ignore")  # mmcv and mmengine warn on import

CONFIG = cf.ConformerConfig(embed_dim=64, num_heads=4, depth=6, channel_ratio=1, mlp_ratio=2, num_classes=7)
ARCH = {"embed_dims": 64, "depths": 6, "num_heads": 4, "channel_ratio": 1}
SIZES = [(64, 64), (75, 90)]  # whole patches, and padded


def _backbone(out_indices=-1):
    lookalike = lookalikes.fill(lookalikes.MMPretrainBackbone(CONFIG, out_indices))
    real = RealBackbone(ARCH, mlp_ratio=2, out_indices=out_indices)
    return real, lookalike


def _classifier():
    lookalike = lookalikes.fill(lookalikes.MMPretrainClassifier(CONFIG))
    head = ConformerHead(num_classes=CONFIG.num_classes, in_channels=[CONFIG.map_channels(CONFIG.depth), 64])
    return ImageClassifier(RealBackbone(ARCH, mlp_ratio=2), head=head), lookalike


CASES = {
    "classifier": _classifier,
    "backbone": _backbone,
    "backbone-of-every-stage": lambda: _backbone([2, 4, 5, 6]),
}


def _same(ours, theirs):
    """The same nest of lists and tuples with nearly the same tensors."""
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        return
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs)
    for our_part, their_part in zip(ours, theirs, strict=True):
        _same(our_part, their_part)


@pytest.fixture(params=CASES)
def models(request):
    """The real module and its lookalike, with the same weights, in eval mode."""
    real, lookalike = CASES[request.param]()
    real.load_state_dict(lookalike.state_dict())
    real.eval()  # returns nothing for a backbone
    lookalike.eval()
    return real, lookalike


@pytest.mark.parametrize("size", SIZES)
def test_the_lookalike_is_like_the_real_one(models, size):
    real, lookalike = models
    assert list(real.state_dict()) == list(lookalike.state_dict())
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _same(lookalike(images), real(images))


@pytest.mark.parametrize("size", SIZES)
def test_compiling_the_real_one_keeps_its_output(models, size):
    real, _ = models
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _same(cf.compile(real, backend="reference")(images), real(images))


def test_a_checkpoint_of_its_own_loads(tmp_path):
    real, _ = _classifier()
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": real.state_dict(), "meta": {"epoch": 1}}, path)
    model = cf.Conformer(CONFIG)
    report = cf.load_weights(model, path)
    assert report.dialect == "mmpretrain"
    assert torch.equal(model.trans_1.mlp.fc1.weight, real.backbone.trans_1.ffn.layers[0][0].weight)
