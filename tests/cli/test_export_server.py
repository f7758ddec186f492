"""conformer-fast export-server."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_samples import KEY, write_plan


@pytest.fixture
def bundle(small_model, tmp_path) -> Path:
    return write_plan(tmp_path / "digits-fp16", small_model)


def test_a_model_is_added(run, run_json, bundle, tmp_path):
    models = tmp_path / "models"
    assert run("export-server", bundle, "-o", models) == (0, f"{models / 'digits-fp16'}\n", "")
    status, result, _ = run_json("export-server", bundle, "-o", models, "--name", "two", "--instances", 2)
    assert (status, result) == (0, {"folder": str(models / "two"), "name": "two"})
    assert {path.name for path in models.iterdir()} == {"digits-fp16", "two"}
    assert "count: 2" in (models / "two" / "config.pbtxt").read_text()


def test_a_key(run, small_model, tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    bundle = write_plan(tmp_path / "digits", small_model, key=KEY)
    assert run("export-server", bundle, "-o", tmp_path / "models", "--key", tmp_path / "key")[0] == 0
    (tmp_path / "key").write_bytes(b"another key of this size")
    status, _, err = run("export-server", bundle, "-o", tmp_path / "more", "--key", tmp_path / "key")
    assert (status, err.count("\n")) == (2, 1)
    assert "not signed with this key" in err


@pytest.mark.parametrize("wrong", ["absent", "empty", "damaged", "there", "name"])
def test_it_refuses_in_one_line(run, wrong, bundle, tmp_path):
    name = "digits"
    if wrong in ("absent", "empty"):
        bundle = tmp_path / wrong
    if wrong == "empty":
        bundle.mkdir()
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
