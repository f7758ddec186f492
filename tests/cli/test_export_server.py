"""conformer-fast export-server."""

from __future__ import annotations

from pathlib import Path

import pytest

import conformer_fast as cf
from conformer_fast.bundles.folder import write_bundle
from conformer_fast.bundles.manifest import Manifest
from conformer_fast.model.outputs import LOGITS


def write_plan(folder: Path, key: bytes | None = None) -> Path:
    """A bundle of the digits model whose plan is any bytes."""
    manifest = Manifest(
        backend="tensorrt",
        precision="fp16",
        precisions={},
        config=cf.create_model("digits").config,
        pad="stem",
        outputs=LOGITS,
        structure=cf.ConformerOutput(*LOGITS),
        shapes=(cf.Shapes((1, 2, 4), (96, 96, 96), (96, 96, 96)),),
        runtime={"flavor": "tensorrt", "version": "10.13.2.6", "targets": ["sm86"], "gpu": ""},
        preprocessing=None,
        labels=None,
        sha256={"weights": "0", "onnx": "1"},
        measured=None,
        rebuild="conformer-fast build ...",
    )
    return write_bundle(folder, manifest, {"model.plan": b"plan"}, key)


def test_a_model_is_added(run, run_json, tmp_path):
    bundle, models = write_plan(tmp_path / "digits-fp16"), tmp_path / "models"
    assert run("export-server", bundle, "-o", models) == (0, f"{models / 'digits-fp16'}\n", "")
    status, result, _ = run_json("export-server", bundle, "-o", models, "--name", "two", "--instances", 2)
    assert (status, result) == (0, {"folder": str(models / "two"), "name": "two"})
    assert {path.name for path in models.iterdir()} == {"digits-fp16", "two"}
    assert "count: 2" in (models / "two" / "config.pbtxt").read_text()


def test_a_key(run, tmp_path):
    (tmp_path / "key").write_bytes(b"secret")
    bundle = write_plan(tmp_path / "digits", key=b"secret")
    assert run("export-server", bundle, "-o", tmp_path / "models", "--key", tmp_path / "key")[0] == 0
    (tmp_path / "key").write_bytes(b"other")
    status, _, err = run("export-server", bundle, "-o", tmp_path / "more", "--key", tmp_path / "key")
    assert (status, err.count("\n")) == (2, 1)
    assert "not signed with this key" in err


@pytest.mark.parametrize("wrong", ["absent", "empty", "damaged", "there", "name"])
def test_it_refuses_in_one_line(run, wrong, tmp_path):
    bundle, name = tmp_path / "bundle", "digits"
    if wrong == "empty":
        bundle.mkdir()
    elif wrong != "absent":
        write_plan(bundle)
    if wrong == "damaged":
        (bundle / "model.plan").write_bytes(b"plam")
    elif wrong == "there":
        (tmp_path / "models" / "digits" / "1").mkdir(parents=True)
    elif wrong == "name":
        name = "my digits"
    status, out, err = run("export-server", bundle, "-o", tmp_path / "models", "--name", name)
    assert (status, out) == (2, "")
    assert err.startswith("conformer-fast export-server: ")
    assert err.count("\n") == 1
