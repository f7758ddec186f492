"""Images that cannot be run are refused in words, with their values, alike on every backend; odd but good ones run."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import lookalikes
import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda

import conformer_fast as cf
from conformer_fast import Conformer, ConformerConfig
from conformer_fast.engines.module import LARGEST, check_images
from conformer_fast.errors import ArgumentError, ArgumentTypeError

CONFIG = ConformerConfig(embed_dim=32, num_heads=2, depth=3, channel_ratio=1, mlp_ratio=1, num_classes=7)
WITH_OPENVINO = find_spec("openvino") is not None and find_spec("onnx") is not None


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    """The same small model on every backend that is installed. The GPU of "triton" is pretended, and is the CPU."""
    model = lookalikes.fill(Conformer(CONFIG)).eval()
    backends = ("reference", "openvino", "triton") if WITH_OPENVINO else ("reference", "triton")
    with fake_cuda():
        yield {backend: cf.compile(model, backend=backend, precision="fp32") for backend in backends}


@pytest.fixture(params=["reference", "openvino", "triton"])
def compiled(request, models):
    if request.param not in models:
        pytest.skip("openvino and onnx are not installed")
    return models[request.param]


def with_value(value: float, count: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    batch = images(2, 3, 32, 32).to(dtype)
    batch.view(-1)[5 : 5 + count] = value
    return batch


def opposite_infinities() -> torch.Tensor:
    batch = with_value(float("inf"))
    batch[1, 2, 31, 31] = -float("inf")
    return batch


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "none": (lambda: None, ArgumentTypeError, "images must be a torch tensor, got NoneType"),
    "numpy": (lambda: np.zeros((1, 3, 32, 32), np.float32), ArgumentTypeError, "must be a torch tensor, got ndarray"),
    "list": (lambda: [images(3, 32, 32)], ArgumentTypeError, "must be a torch tensor, got list"),
    "int64": (
        lambda: torch.zeros(1, 3, 32, 32, dtype=torch.int64),
        ArgumentTypeError,
        r"floating point and normalized, or uint8, got torch\.int64; see conformer_fast\.pre",
    ),
    "int8": (lambda: torch.zeros(1, 3, 32, 32, dtype=torch.int8), ArgumentTypeError, r"or uint8, got torch\.int8"),
    "pixels channels last": (
        lambda: torch.zeros(1, 32, 32, 3, dtype=torch.uint8),
        ArgumentError,
        r"\(batch, 3, height, width\), got \(1, 32, 32, 3\)",
    ),
    "bool": (lambda: torch.zeros(1, 3, 32, 32, dtype=torch.bool), ArgumentTypeError, r"got torch\.bool"),
    "complex": (lambda: images(1, 3, 32, 32) * 1j, ArgumentTypeError, r"got torch\.complex64"),
    "sparse": (
        lambda: images(1, 3, 32, 32).to_sparse(),
        ArgumentTypeError,
        r"one dense tensor, got a torch\.sparse_coo one",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([images(3, 32, 32), images(3, 48, 32)]),
        ArgumentTypeError,
        "one dense tensor, got a nested one",
    ),
    "rank 0": (lambda: torch.tensor(1.0), ArgumentError, r"\(batch, 3, height, width\), got \(\)"),
    "rank 3": (lambda: images(3, 32, 32), ArgumentError, r"\(batch, 3, height, width\), got \(3, 32, 32\)"),
    "rank 5": (lambda: images(1, 1, 3, 32, 32), ArgumentError, r"got \(1, 1, 3, 32, 32\)"),
    "gray": (lambda: images(2, 1, 32, 32), ArgumentError, r"\(batch, 3, height, width\), got \(2, 1, 32, 32\)"),
    "four channels": (lambda: images(2, 4, 32, 32), ArgumentError, r"got \(2, 4, 32, 32\)"),
    "channels last": (lambda: images(2, 32, 32, 3), ArgumentError, r"got \(2, 32, 32, 3\)"),
    "low": (lambda: images(1, 3, 15, 64), ArgumentError, "images are 15x64, smaller than one 16x16 patch; resize"),
    "narrow": (lambda: images(1, 3, 64, 15), ArgumentError, "images are 64x15, smaller than one 16x16 patch"),
    "no pixels": (lambda: images(1, 3, 0, 0), ArgumentError, "images are 0x0, smaller than one 16x16 patch"),
    "empty batch": (lambda: images(0, 3, 32, 32), ArgumentError, r"the batch is empty: .* \(0, 3, 32, 32\)"),
    "meta": (
        lambda: torch.empty(1, 3, 32, 32, device="meta"),
        ArgumentError,
        r"compiled for the CPU, the images are on meta; pass images\.cpu\(\)",
    ),
    "gradient": (
        lambda: images(1, 3, 32, 32).requires_grad_(),
        ArgumentError,
        r"do not train: the images require a gradient; pass images\.detach\(\)",
    ),
    "nan": (lambda: with_value(float("nan"), 2), ArgumentError, "2 of the images' 6144 values are NaN or infinite"),
    "inf": (lambda: with_value(float("inf"), 3), ArgumentError, "3 of the images' 6144 values are NaN or infinite"),
    "minus inf": (lambda: with_value(-float("inf")), ArgumentError, "1 of the images' 6144 values are NaN or infinite"),
    "inf and minus inf": (opposite_infinities, ArgumentError, "2 of the images' 6144 values are NaN or infinite"),
    "half nan": (lambda: with_value(float("nan"), 1, torch.float16), ArgumentError, "1 of the images' 6144 values"),
    "the largest of fp32": (
        lambda: with_value(-torch.finfo(torch.float32).max, 2),
        ArgumentError,
        r"2 of the images' 6144 values are beyond 1e\+15, up to 3\.4e\+38, where fp32 and bf16 no longer",
    ),
    "beyond bf16's norms": (
        lambda: with_value(1e20, 1, torch.bfloat16),
        ArgumentError,
        "1 of .* up to 9.97e\\+19, where",
    ),
    "beyond fp32": (
        lambda: with_value(1e300, 4, torch.float64),
        ArgumentError,
        "4 of the images' 6144 .* infinite in fp32",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("make", "kind", "message"), BAD.values(), ids=BAD)
def test_refused_alike_on_every_backend(make, kind, message, models):
    texts = set()
    for compiled in models.values():
        with pytest.raises(kind, match=message) as caught:
            compiled(make())
        assert type(caught.value) is kind
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_pixels_are_for_models_of_rgb_pictures():
    model = lookalikes.fill(Conformer(replace(CONFIG, in_channels=1))).eval()
    compiled = cf.compile(model, backend="reference")
    message = r"uint8 images are pixels of RGB pictures, this model reads 1 channel\(s\); pass floating point"
    with pytest.raises(TypeError, match=message):
        compiled(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    assert compiled(images(1, 1, 32, 32)).logits.shape == (1, 7)


def test_images_elsewhere_name_both_devices(models):
    fast, gpu = models["reference"], torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"compiled for cuda:1, the images are on cpu; pass images\.to\('cuda:1'\)$"):
        check_images(images(1, 3, 32, 32), fast.config, fast.pad, gpu)


def test_images_on_a_gpu_are_not_searched_for_nan(models):
    fast, elsewhere = models["reference"], torch.device("meta")
    no_values = torch.empty(1, 3, 32, 32, device="meta")
    check_images(no_values, fast.config, fast.pad, elsewhere)


def test_verify_refuses_the_same(compiled):
    with pytest.raises(ValueError, match="the batch is empty"):
        compiled.verify(images(0, 3, 32, 32))


def test_refusing_breaks_nothing(compiled):
    good = images(2, 3, 32, 32)
    before = compiled(good)
    with pytest.raises(ValueError, match="NaN or infinite"):
        compiled(with_value(float("nan")))
    after = compiled(good)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("size", [(40, 48), (48, 33), (47, 47)], ids=str)
def test_model_without_padding_refuses_parts_of_patches(size, models):
    model = lookalikes.fill(Conformer(CONFIG, pad="none")).eval()
    for backend in models:
        compiled = cf.compile(model, backend=backend, precision="fp32")
        if size == (47, 47):  # the stem rounds up, to the 12x12 map of a 48x48 image
            assert compiled(images(1, 3, *size)).logits.shape == (1, 7)
            continue
        with pytest.raises(ValueError, match=rf"a {size[0]}x{size[1]} image gives .* not whole 16x16 patches; resize"):
            compiled(images(1, 3, *size))


def widened(batch: torch.Tensor) -> torch.Tensor:
    """The same values as every second column of a wider tensor."""
    wide = torch.full((*batch.shape[:3], 2 * batch.shape[3]), float("nan"))
    wide[..., ::2] = batch
    return wide[..., ::2]


ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "columns of a wider tensor": widened,
    "flipped memory": lambda batch: batch.flip(-1).flip(-1),
    "transposed": lambda batch: batch.transpose(2, 3).contiguous().transpose(2, 3),
    "channels_last": lambda batch: batch.contiguous(memory_format=torch.channels_last),
    "with an offset": lambda batch: torch.cat([batch[:1], batch])[1:],
    "float64": lambda batch: batch.double(),
    "parameter": lambda batch: torch.nn.Parameter(batch, requires_grad=False),
    "read-only memory": lambda batch: torch.frombuffer(batch.numpy().tobytes(), dtype=torch.float32).view(batch.shape),
    "negative view": lambda batch: torch.complex(batch, -batch).conj().imag,
    "contiguous negative view": lambda batch: torch._neg_view(-batch),
}


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_same_values_in_another_form(make, compiled):
    batch = images(3, 3, 32, 48)
    odd = make(batch)
    assert torch.equal(odd.float(), batch)
    for ours, expected in zip(compiled(odd), compiled(batch), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_shorter_floats_are_read_exactly(dtype, compiled):
    batch = images(2, 3, 32, 32).to(dtype)
    result = compiled(batch)
    assert {tensor.dtype for tensor in result} == {torch.float32}
    assert all(torch.equal(*pair) for pair in zip(result, compiled(batch.float()), strict=True))


def test_expanded_image(compiled):
    image = images(1, 3, 32, 48)
    result = compiled(image.expand(5, -1, -1, -1))
    repeated = compiled(image.repeat(5, 1, 1, 1))
    assert all(torch.equal(*pair) for pair in zip(result, repeated, strict=True))


def test_expanded_pixel(compiled):
    result = compiled(torch.tensor(0.5).expand(2, 3, 32, 32))
    expected = compiled(torch.full((2, 3, 32, 32), 0.5))
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_gradient_does_not_matter_where_none_is_recorded(disabled, compiled):
    batch = images(2, 3, 32, 32)
    expected = compiled(batch)
    with disabled():
        result = compiled(batch.requires_grad_())
    assert not any(tensor.requires_grad for tensor in result)
    assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))


def test_half_precision_images_whose_sum_is_infinite(compiled):
    batch = images(2, 3, 32, 32).half()
    batch[0, :, :8] = torch.finfo(torch.float16).max
    assert not batch.sum().isfinite()
    result, alone = compiled(batch), compiled(images(2, 3, 32, 32).half())
    assert all(torch.equal(ours[1], theirs[1]) for ours, theirs in zip(result, alone, strict=True))


def test_the_largest_images_are_computed_rightly(models):
    """Against float64; a hundredth larger, they are refused."""
    batch = LARGEST / 4.5 * images(2, 3, 32, 32).clamp(-4.5, 4.5)
    batch[0, 0, 0, 0] = -LARGEST
    for compiled in models.values():
        report = compiled.verify(batch)
        assert report.within, str(report)
        assert max(row.error for row in report.results) < 1e-5
        with pytest.raises(ArgumentError, match=r"1 of .* are beyond 1e\+15, up to 1\.01e\+15, where"):
            compiled(torch.where(batch == -LARGEST, 1.01 * batch, batch))
