"""Targets and precisions of a build: what a flavor, a GPU or this machine cannot do is refused before any work."""

import pytest
from fake_tensorrt_builder import pretended
from plan_samples import FIXED

from conformer_fast.engines.tensorrt.plan import check_options, engine_from_onnx, targets_of
from conformer_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("gpu")
REFUSED = {
    "fp8 on Ampere": (["sm80"], "fp8", BackendError, "'fp8' needs sm89 or newer .* run on sm80; choose other targets"),
    "fp8 on one of several": (["sm120", "sm86"], "fp8", BackendError, "run on sm86;"),
    "Turing": (["sm75", "sm86"], "fp16", BackendError, r"cannot build for sm75; it can for sm80, "),
    "Hopper": (["sm90"], "fp16", BackendError, r"cannot build for sm90; it can for sm80, .*sm120"),
    "nothing named": ([], "fp16", BackendError, r"no CUDA GPU here .* give --target .* of sm80, "),
    "a dot": (["8.6"], "fp16", ValueError, r"written like \"sm86\" for 8.6, got '8.6'"),
    "another prefix": (["compute_86"], "fp16", ValueError, "got 'compute_86'"),
    "CURRENT": (["current"], "fp16", ValueError, "got 'current'"),
    "empty": ([""], "fp16", ValueError, "got ''"),
    "unknown precision": (["sm86"], "fp4", ValueError, "unknown precision 'fp4'; choose one of fp32, bf16"),
}


@pytest.mark.parametrize(("targets", "precision", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_the_build(targets, precision, error, message, rtx, monkeypatch):
    monkeypatch.delattr(rtx.module, "Builder")
    with pytest.raises(error, match=message):
        check_options(rtx, targets, precision)
    with pytest.raises(error, match=message):
        engine_from_onnx(b"", [FIXED], rtx, targets, precision)


def test_targets_of_an_engine(rtx, gpu):
    assert targets_of(rtx, ["SM120", "sm86", "Sm86"]) == ("sm86", "sm120")
    gpu((8, 9))
    assert targets_of(rtx) == ("sm89",)
    assert targets_of(rtx, ["sm86"]) == ("sm86",)
    gpu((9, 0))
    assert targets_of(rtx) == ("sm90",)  # whether it builds there is for TensorRT-RTX to say


NOT_FOR_TENSORRT = {
    "no GPU": (None, [], "fp16", "TensorRT 10.13.0 builds on the GPU .* no CUDA GPU here; TensorRT-RTX builds without"),
    "no GPU, a target": (None, ["sm86"], "fp16", "no CUDA GPU here; TensorRT-RTX builds without one"),
    "a target": ((8, 6), ["sm89"], "fp16", r"GPU of this machine only \(sm86\), not for sm89; leave the targets out"),
    "the GPU here as a target": ((8, 6), ["sm86"], "fp16", r"only \(sm86\), not for sm86; leave the targets out"),
    "fp8 on Ampere": ((8, 6), [], "fp8", "'fp8' needs sm89 or newer with TensorRT 10.13.0, .* run on sm86"),
    "bf16 on Turing": ((7, 5), [], "bf16", "'bf16' needs sm80 or newer"),
}


@pytest.mark.parametrize(("found", "targets", "precision", "message"), NOT_FOR_TENSORRT.values(), ids=NOT_FOR_TENSORRT)
def test_what_tensorrt_cannot_do_is_refused_before_the_build(found, targets, precision, message, gpu):
    gpu(found)
    flavor = pretended()
    with pytest.raises(BackendError, match=message):
        check_options(flavor, targets, precision)
    with pytest.raises(BackendError, match=message):
        engine_from_onnx(b"graph", [FIXED], flavor, targets, precision)
    assert flavor.module.calls == []


@pytest.mark.parametrize(
    ("found", "precision"), [((7, 5), "fp32"), ((7, 5), "int8"), ((8, 0), "bf16"), ((8, 9), "fp8"), ((12, 0), "fp8")]
)
def test_what_tensorrt_can_do_on_a_gpu(found, precision, gpu):
    gpu(found)
    check_options(pretended(), [], precision)
