"""A new backend is one folder and one line in the registry: all else knows it by what its class says."""

import copy
import dataclasses

import pytest
import torch
from bundle_samples import images, same
from toy_backend import Toy

import conformer_fast as cf
from conformer_fast.deploy.build import build
from conformer_fast.engines import registry
from conformer_fast.errors import BackendError


@pytest.fixture
def line(monkeypatch):
    """The line in the registry, before all others, so that "auto" prefers it."""
    monkeypatch.setattr(registry, "BACKENDS", {"toy": "toy_backend:Toy", **registry.BACKENDS})


@pytest.fixture(params=["compiled", "loaded"])
def fast(request, line, small_model, tmp_path):
    compiled = cf.compile(small_model, backend="toy")
    return compiled if request.param == "compiled" else cf.load(compiled.save(tmp_path / "bundle"))


def test_it_verifies(fast, small_model, capsys):
    report = fast.verify(images(5, 3, 32, 48), small_model)
    assert report.within
    assert report.backend == "toy"
    assert len(report.blocks) == (0 if fast.reference is None else 2 + 4 * 2)
    assert capsys.readouterr().out == f"{report}\n"


def test_it_is_saved_and_loaded(line, small_model, tmp_path):
    compiled = cf.compile(small_model, backend="toy", at_once=3)
    folder = compiled.save(tmp_path / "bundle", key=b"a secret of 24 bytes ...")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "labels.txt", "toy.safetensors"}
    loaded = cf.load(folder, key=b"a secret of 24 bytes ...", at_once=1)
    batch = images(5, 3, 32, 32)
    for ours, theirs in zip(loaded(batch), compiled(batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (compiled.settings.backend, loaded.settings.backend) == (Toy(3), Toy(1))
    assert loaded.manifest.rebuild == "conformer_fast.compile(model, backend='toy', precision='fp32').save('bundle')"
    assert loaded.save(tmp_path / "copy").is_dir()


def test_copies(fast):
    batch = images(2, 3, 32, 32)
    assert same(copy.deepcopy(fast)(batch), fast(batch))


def test_it_is_built(line, small_model, tmp_path):
    assert cf.load(build(small_model, tmp_path / "bundle", backend="toy", precision="fp32")).verify(
        images(1, 3, 32, 32), small_model
    )


def test_an_unknown_option_is_refused_by_name(line, small_model, tmp_path):
    message = "backend 'toy' has no option threads; it has at_once"
    with pytest.raises(BackendError, match=message):
        cf.compile(small_model, backend="toy", threads=2)
    with pytest.raises(BackendError, match=message):
        cf.load(cf.compile(small_model, backend="toy").save(tmp_path / "bundle"), threads=2)


def test_a_precision_that_it_lacks(line, small_model):
    with pytest.raises(BackendError, match="precision 'fp16' is not available on backend 'toy' here; choose from fp32"):
        cf.compile(small_model, backend="toy", precision="fp16")


@pytest.mark.parametrize("asked_only", [False, True])
def test_auto(asked_only, line, small_model, monkeypatch):
    monkeypatch.setattr(Toy, "asked_only", asked_only)
    fast = cf.compile(small_model, precision="fp32")
    assert (fast.settings.backend.name == "toy") is not asked_only
    assert "toy" not in fast.reason or not asked_only
    assert cf.compile(small_model, backend="toy").settings.backend == Toy()


def test_auto_passes_over_what_is_missing(line, small_model, monkeypatch):
    monkeypatch.setattr(Toy, "missing", lambda self: "no toys")
    fast = cf.compile(small_model, precision="fp32")
    assert fast.settings.backend.name != "toy"
    assert "no toy (no toys)" in fast.reason
    with pytest.raises(BackendError, match=r"backend 'toy' cannot run here: no toys; here there is .*reference"):
        cf.compile(small_model, backend="toy")


def test_a_class_without_a_line(small_model, tmp_path):
    """It runs, but its bundle's name says nothing to whoever loads it."""
    assert [field.name for field in dataclasses.fields(Toy)] == ["at_once"]
    fast = cf.compile(small_model, backend=Toy(4))
    assert fast.verify(images(5, 3, 32, 32)).within
    with pytest.raises(BackendError, match="'toy' has no engine to save"):
        fast.save(tmp_path / "bundle")
