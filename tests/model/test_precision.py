"""TF32 only as asked: what PyTorch's settings are inside a run, and after it."""

import pytest
import torch

from conformer_fast.model.precision import tf32_as_asked


def cudnn_state() -> tuple:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.enabled, cudnn.benchmark, cudnn.deterministic


@pytest.fixture
def matmul_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("precision", "dtype", "inside"),
    [
        ("highest", torch.float32, False),
        ("high", torch.float32, True),
        ("medium", torch.float32, True),
        ("highest", torch.float16, True),  # where it changes nothing
        ("highest", torch.float64, True),
    ],
)
def test_tf32_only_as_asked(precision, dtype, inside, matmul_precision):
    matmul_precision(precision)
    before = cudnn_state()
    assert before[0] == "tf32"  # PyTorch's default
    with tf32_as_asked(dtype):
        state = cudnn_state()
        assert (state[0] == "tf32") == inside
        assert state[1:] == before[1:]
    assert cudnn_state() == before


def test_tf32_allowed_by_pytorchs_newer_setting(matmul_precision):
    """torch.get_float32_matmul_precision raises then."""
    matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    for dtype in (torch.float32, torch.float16):
        with tf32_as_asked(dtype):
            assert cudnn_state()[0] == "tf32"


def test_tf32_turned_off_by_the_user_stays_so(matmul_precision):
    matmul_precision("highest")
    conv = torch.backends.cudnn.conv
    conv.fp32_precision = "ieee"
    try:
        with tf32_as_asked(torch.float32):
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = "tf32"
