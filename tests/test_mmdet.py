"""The compiled backbone in mmdetection's registry: in a look-alike of it, and in its own where it can be imported."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from detector_samples import BACKBONE, small

from conformer_fast.model.reference import Conformer


class Registry:
    """As mmengine's: a decorator, and `build` by type."""

    def __init__(self) -> None:
        self.types: dict[str, type] = {}

    def register_module(self):
        def register(module: type) -> type:
            self.types[module.__name__] = module
            return module

        return register

    def build(self, config: dict):
        return self.types[config.pop("type")](**config)


@pytest.fixture(params=["look-alike", "mmdet"])
def models(request, monkeypatch):
    """The registry, with the backbone in it."""
    monkeypatch.delitem(sys.modules, "conformer_fast.mmdet", raising=False)
    if request.param == "mmdet":
        registry = pytest.importorskip("mmdet.registry").MODELS
        monkeypatch.setattr(registry, "_module_dict", dict(registry.module_dict))
    else:
        package, module, registry = ModuleType("mmdet"), ModuleType("mmdet.registry"), Registry()
        module.MODELS = registry
        monkeypatch.setitem(sys.modules, "mmdet", package)
        monkeypatch.setitem(sys.modules, "mmdet.registry", module)
    importlib.import_module("conformer_fast.mmdet")
    yield registry
    sys.modules.pop("conformer_fast.mmdet", None)


def expected(backbone: Conformer, images: torch.Tensor):
    reference = Conformer(backbone.config, features_only=True).eval()
    reference.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        return reference(images).maps


def test_it_is_built_by_its_name(models):
    backbone = models.build({"type": "ConformerFast", "variant": BACKBONE, "precision": "fp32"}).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = backbone(images)
    assert [value.shape[1] for value in found] == [64, 128, 256, 256]
    for value, wanted in zip(found, expected(backbone, images), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-3)


def test_weights_that_are_loaded_later_count(models, tmp_path):
    backbone = models.build({"type": "ConformerFast", "variant": BACKBONE, "precision": "fp32"}).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images)[0]
        backbone.load_state_dict(small().backbone.state_dict())  # as a detector's checkpoint has them
        after = backbone(images)[0]
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, small().backbone(images).maps[0], rtol=1e-3, atol=1e-3)
    file = tmp_path / "backbone.pth"
    torch.save(small().backbone.state_dict(), file)
    other = models.build({"type": "ConformerFast", "variant": BACKBONE, "weights": file, "precision": "fp32"}).eval()
    other.init_weights()
    with torch.no_grad():
        torch.testing.assert_close(other(images)[0], after)


def test_it_trains_as_the_reference(models):
    backbone = models.build({"type": "ConformerFast", "variant": BACKBONE, "precision": "fp32"}).train()
    loss = sum(value.square().mean() for value in backbone(torch.randn(2, 3, 64, 64)))
    loss.backward()
    assert backbone.conv1.weight.grad.abs().sum() > 0
    with torch.no_grad():
        backbone.conv1.weight.mul_(3)
        images = torch.randn(1, 3, 64, 64)
        found = backbone.eval()(images)[-1]
        torch.testing.assert_close(found, expected(backbone, images)[-1], rtol=1e-3, atol=1e-3)


def test_what_cannot_be(models):
    for options, message in (
        ({"variant": "huge"}, "unknown Conformer"),
        ({"backend": "cuda"}, "unknown backend"),
        ({"precision": "fp12"}, "unknown precision"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build({"type": "ConformerFast", **options})


def test_without_mmdetection(monkeypatch):
    monkeypatch.delitem(sys.modules, "conformer_fast.mmdet", raising=False)
    monkeypatch.setitem(sys.modules, "mmdet.registry", None)
    with pytest.raises(ImportError, match="is for mmdetection 3, which cannot be imported"):
        importlib.import_module("conformer_fast.mmdet")
