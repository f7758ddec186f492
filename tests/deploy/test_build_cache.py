"""build() and the cache: what gives the same engine, and what is built anew."""

from dataclasses import replace

import lookalikes
import pytest
import torch
from build_samples import NEEDS_RTX, SHAPES, build_in
from bundle_samples import images

from conformer_fast.deploy.build import build
from conformer_fast.engines import cache
from conformer_fast.engines.tensorrt import backend as backend_module
from conformer_fast.engines.tensorrt import flavors
from conformer_fast.engines.tensorrt.backend import TensorRT
from conformer_fast.engines.tensorrt.flavors import Flavor
from conformer_fast.model.digest import weights_sha256
from conformer_fast.model.reference import Conformer, ConformerOutput

pytestmark = NEEDS_RTX


def test_the_same_build_again_comes_from_the_cache(small_model, tmp_path, fresh_cache, asked):
    first = build_in(tmp_path / "first", small_model)
    again = build_in(tmp_path / "again", small_model, targets=["SM86", "sm86"])
    build(small_model, tmp_path / "class", backend=TensorRT([SHAPES], "tensorrt-rtx", ["sm86"]))
    assert len(asked) == 1
    assert replace(again, rebuild=first.rebuild) == first
    (entry,) = cache.cached_engines()
    assert entry.size == first.files["model.plan"].bytes
    assert (entry.fields["backend"], entry.fields["targets"]) == ("tensorrt", ["sm86"])


@pytest.mark.filterwarnings("ignore:these weights have the sizes of no published variant")
@pytest.mark.parametrize("given", ["official", "mmpretrain", "state dict", "checkpoint"])
def test_every_kind_of_model_gives_the_same_engine(given, small_config, tmp_path, fresh_cache, asked):
    config = replace(small_config, embed_dim=128)  # a file alone tells no number of heads: 64 channels each
    reference = lookalikes.fill(Conformer(config)).eval()
    build_in(tmp_path / "reference", reference)
    if given in ("official", "mmpretrain"):
        kind = lookalikes.OfficialConformer if given == "official" else lookalikes.MMPretrainClassifier
        model = lookalikes.fill(kind(config))
        model.eval()
    else:
        model = reference.state_dict()
        if given == "checkpoint":
            torch.save({"state_dict": model}, tmp_path / "model.pth")
            model = tmp_path / "model.pth"
    manifest = build_in(tmp_path / "bundle", model)
    assert len(asked) == 1  # the second came from the cache
    assert manifest.sha256["weights"] == weights_sha256(reference)
    assert type(manifest.structure) is {"official": list, "mmpretrain": tuple}.get(given, ConformerOutput)


OTHER = {
    "precision": {"precision": "fp32"},
    "shapes": {"shapes": [replace(SHAPES, batch=(1, 2, 3))]},
    "two shapes": {"shapes": [SHAPES, SHAPES]},
    "target": {"targets": ["sm89"]},
    "two targets": {"targets": ["sm86", "sm89"]},
    "outputs": {"outputs": ["logits"]},
}


@pytest.mark.parametrize("changed", OTHER.values(), ids=OTHER)
def test_another_engine_is_built_anew(changed, small_model, tmp_path, fresh_cache, asked):
    build_in(tmp_path / "bundle", small_model)
    build_in(tmp_path / "bundle", small_model, **changed)
    assert len(asked) == 2


def test_other_weights_or_ranges_are_built_anew(small_model, tmp_path, fresh_cache, asked):
    first = build_in(tmp_path / "bundle", small_model, "int8")
    other_ranges = build_in(tmp_path / "bundle", small_model, "int8", quantization=[3 * images(4, 3, 32, 32)])
    with torch.no_grad():
        small_model.trans_cls_head.bias[3] += 1
    other_weights = build_in(tmp_path / "bundle", small_model, "int8")
    assert len(asked) == 3
    assert first.sha256["weights"] == other_ranges.sha256["weights"] != other_weights.sha256["weights"]
    assert len({manifest.sha256["onnx"] for manifest in (first, other_ranges, other_weights)}) == 3


def test_another_tensorrt_builds_anew(small_model, tmp_path, fresh_cache, asked, monkeypatch):
    build_in(tmp_path / "bundle", small_model)
    rtx = flavors.get_flavor("tensorrt-rtx")
    newer = Flavor(rtx.name, rtx.module, f"{rtx.version}.1")
    monkeypatch.setattr(backend_module, "get_flavor", lambda name: newer)
    assert build_in(tmp_path / "bundle", small_model).runtime["version"] == newer.version
    assert len(asked) == 2
