"""conformer-fast info."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines.registry import BACKENDS, choose


def test_facts_are_fields(run_json):
    status, facts, err = run_json("info")
    assert (status, err) == (0, "")
    assert facts["conformer_fast"] == cf.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["packages"]["torch"] == metadata.version("torch")
    assert {*cf.VARIANTS, "digits"} == set(facts["models"])
    fast = cf.compile(cf.create_model("digits"))
    assert facts["auto"] == {
        "backend": fast.settings.backend.name,
        "precision": fast.settings.precision,
        "device": str(fast.device),
        "reason": fast.reason,
    }
    assert list(facts["backends"]) == list(BACKENDS)
    assert facts["backends"]["reference"] == {
        "available": True,
        "reason": None,
        "precisions": ["fp32"],
        "speeds": {},
        "devices": {},
    }
    assert facts["images"]["extension"] == (facts["images"]["instructions"] is not None)
    assert facts["images"]["extension"] == (facts["images"]["reason"] is None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_missing_has_its_reason(run, run_json):
    missing = {"available": False, "reason": "no CUDA device", "precisions": [], "speeds": {}, "devices": {}}
    assert run_json("info")[1]["backends"]["triton"] == missing
    lines = run("info")[1].splitlines()
    assert ["triton", "no", "CUDA", "device"] in [line.split() for line in lines]


def test_people_read_the_same(run):
    status, out, _ = run("info")
    lines = out.splitlines()
    assert status == 0
    assert f"conformer_fast: {cf.__version__}" in lines
    assert f"auto: {choose().reason}" in lines
    if cf.info().backends["openvino"].available:
        (line,) = [line for line in lines if line.split()[0] == "openvino" and "available" in line]
        assert re.search(r"\(.*CPU is [^;)]", line)
    assert "backends:" in lines
    assert ["reference", "available:", "fp32"] in [line.split() for line in lines]
