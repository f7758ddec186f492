"""tune(): which problems are measured, in which precision, and what is kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from on_stand_in import on_stand_in

import conformer_fast as cf
from conformer_fast.deploy import tune as tune_module
from conformer_fast.engines.registry import Choice
from conformer_fast.inference.lower import lower

tuning = pytest.importorskip("conformer_fast.engines.triton.tuning")


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Pretends that there is a GPU, with room for 8 images. Returns the networks and images that were tuned."""
    calls = []

    def tune(network, images, skip):
        if len(images) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        calls.append((network, images))
        rule, failed = tuning.Tile(64, 64, 32, 4, 3), {"pytorch": "RuntimeError: no"}
        slower = tuning.Tuned(f"attention B{len(images)}", rule, "pytorch", {rule: 3e-6, "pytorch": 2e-6}, {})
        as_it_was = tuning.Tuned("heads", rule, rule, {rule: 5e-6}, failed)
        return {tuned.problem: tuned for tuned in (slower, as_it_was) if tuned.problem not in skip}

    monkeypatch.setattr(tuning, "tune", tune)
    backend = SimpleNamespace(torch_device=lambda: "cpu", tuner=lambda device: tuning.KernelTuner(torch.device(device)))
    monkeypatch.setattr(tune_module, "choose", lambda name, precision: Choice(backend, precision, "as asked"))
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(tmp_path))
    return calls


def test_each_size_that_models_run_is_tuned_once_and_kept(tuned, tmp_path):
    seen = []
    found = cf.tune(["digits"], [8, 1, 7], size=32, precision="bf16", each=seen.append)
    assert [tuple(images.shape) for _, images in tuned] == [(1, 3, 32, 32), (8, 3, 32, 32)]
    assert {images.dtype for _, images in tuned} == {torch.bfloat16}
    assert [entry.problem for entry in found.tuned] == ["attention B1", "heads", "attention B8"]
    assert tuple(seen) == found.tuned
    assert (found.precision, found.no_room) == ("bf16", ())
    assert tuning.load(found.gpu) == {entry.problem: entry.choice for entry in found.tuned}
    assert found.file.is_relative_to(tmp_path)
    assert str(found) == (
        f"{found.gpu}, bf16: 3 problems, 2 with another choice than the rule's; written to {found.file}"
    )


def test_a_batch_without_room_is_passed_over(tuned):
    found = cf.tune(["digits"], [9, 2], size=32, precision="bf16")
    assert found.no_room == (("digits", 10),)
    assert [entry.problem for entry in found.tuned] == ["attention B2", "heads"]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_8_bits_are_the_products_that_calibrated_models_have_in_them(tuned, precision):
    """So their calls find what was tuned: a problem is named by sizes and types."""
    cf.tune(["digits"], [1], size=64, precision=precision)
    ((network, images),) = tuned
    model = cf.create_model("digits", "packaged")
    quantization = cf.calibrate(model, [torch.randn(2, 3, 64, 64)], precision=precision)
    real = lower(model, None, "fp16", quantization)
    kinds = [{name: (t.shape, t.dtype) for name, t in found.state_dict().items()} for found in (network, real)]
    assert kinds[0] == kinds[1]
    assert images.dtype == torch.float16


@pytest.mark.slow
def test_8_bits_on_the_stand_in(tmp_path):
    """All of it, up to the launch of a kernel: most problems are in 8 bits, and all are kept."""
    command = ("tune", "--models", "digits", "--precision", "int8", "--batch", "1", "--size", "32")
    status, printed = on_stand_in("-m", "conformer_fast.cli.main", *command, CONFORMER_FAST_CACHE=str(tmp_path))
    assert status == 0, printed
    head, *rows, last = printed.splitlines()
    assert head.split()[0] == "problem"
    assert sum(row.split()[1].startswith("int8") for row in rows) > 20
    assert f"{len(rows)} problems" in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_without_a_gpu(precision):
    with pytest.raises(cf.BackendError, match="backend 'triton' cannot run here: no CUDA device"):
        cf.tune(["digits"], precision=precision)
