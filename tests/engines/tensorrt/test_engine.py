"""What the TensorRT engine returns: each output asked for, the caller's own. On a pretended TensorRT and torch.cuda."""

import pytest
import torch
from executor_samples import FORMS, assert_same, equal, images
from tensorrt_samples import CPU, LOGITS, engine_of, reference


@pytest.mark.parametrize("outputs", [LOGITS, LOGITS[::-1], ("sizes",)], ids=str)
def test_outputs_by_name_in_the_order_asked_for(outputs, trt):
    engine = engine_of(trt, outputs)
    for B, size in [(3, 16), (1, 16), (9, 24), (2, 16), (12, 32), (3, 16)]:
        batch = images(B, 3, size, size, seed=B)
        results = engine(batch)
        assert_same(results, reference(batch, outputs))
        for tensor in results:
            assert (tensor.dtype, tensor.device, len(tensor)) == (torch.float32, CPU, B)
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_forms_of_images(make, trt):
    batch = images(3, 3, 16, 16).bfloat16().float()
    engine = engine_of(trt)
    assert equal(engine(make(batch)), engine(batch))


def test_results_are_the_callers_own(trt):
    engine = engine_of(trt)
    batches = [images(2, 3, 16, 16, seed=seed) for seed in range(3)]
    results = [engine(batch) for batch in batches]
    kept = [[tensor.clone() for tensor in result] for result in results]
    for result in results[1:]:
        for tensor in result:
            tensor.fill_(torch.nan)
    assert equal(results[0], kept[0])
    assert equal(engine(batches[1]), kept[1])


def test_what_earlier_calls_left_in_spare_rows_does_not_matter(trt):
    engine, batch = engine_of(trt), images(5, 3, 24, 24)
    expected = engine(batch)
    assert all(tensor.isnan().all() for tensor in engine(torch.full((8, 3, 24, 24), torch.nan)))
    assert equal(engine(batch), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("first_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes(first_mode, mode, trt):
    engine, batch = engine_of(trt), images(2, 3, 16, 16)
    with first_mode():
        expected = engine(batch)
    with mode():
        results = engine(batch)
        assert all(tensor.is_inference() == torch.is_inference_mode_enabled() for tensor in results)
    assert equal(results, expected)
    assert not any(tensor.requires_grad for tensor in engine(batch.requires_grad_()))
