"""A digest of tensors is of names, types, shapes and values, and of nothing else."""

import copy
import itertools

import pytest
import torch

from conformer_fast.model.digest import digest_of, weights_sha256


def test_everything_that_is_said_counts():
    """All of these differ in something."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    digests = [
        digest_of(tensors)
        for tensors in (
            {},
            {"a": a},
            {"b": a},
            {"a": a.int()},
            {"a": a.view(torch.int32)},
            {"a": a[None]},
            {"a": a[:, None]},
            {"a": a[:0]},
            {"a": a[:0, None]},
            {"a": a[0]},
            {"a": a[:1]},
            {"a": -a},
            {"a": a, "b": b},
            {"a": b, "b": a},
            {"a": a.half()},
            {"a": a.bfloat16()},
            {"a": torch.tensor([0.0])},
            {"a": torch.tensor([-0.0])},
            {"a": torch.tensor([torch.nan])},
            {"a": a.bool()},
            {"a": a.to(torch.float8_e4m3fn)},
            {'a": 1, "b': a},
        )
    ]
    assert len({*digests}) == len(digests)
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_no_two_ways_to_read_one_digest():
    """Where a tensor's bytes look like the head of the next."""
    content = torch.tensor([*b'["b", "torch.uint8", [1]]1'], dtype=torch.uint8)
    one = torch.tensor([*b"1"], dtype=torch.uint8)
    assert digest_of({"a": content}) != digest_of({"a": content[:0], "b": one})


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64]
)
def test_how_it_lies_in_memory_does_not_count(dtype):
    tensor = torch.randn(2, 6, 4, 4).to(dtype)
    expected = digest_of({"": tensor})
    assert digest_of({"": tensor.contiguous(memory_format=torch.channels_last)}) == expected
    assert digest_of({"": tensor.transpose(0, 3).contiguous().transpose(0, 3)}) == expected
    padded = torch.zeros(2, 6, 4, 9).to(dtype)
    padded[..., ::2][..., :4] = tensor
    assert digest_of({"": padded[..., ::2][..., :4]}) == expected
    assert digest_of({"": tensor[:1].expand(3, 6, 4, 4)}) == digest_of({"": torch.cat([tensor[:1]] * 3)})


def test_the_order_does_not_count():
    tensors = {name: torch.tensor(float(index)) for index, name in enumerate("abc")}
    assert len({digest_of(dict(order)) for order in itertools.permutations(tensors.items())}) == 1


def test_what_gradients_flow_through():
    tensor = torch.randn(3)
    assert digest_of({"": tensor.clone().requires_grad_()}) == digest_of({"": tensor})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_count():
    tensor = torch.randn(3, 4)
    assert digest_of({"": tensor.cuda().T}) == digest_of({"": tensor.T})


def test_weights_are_parameters_and_buffers(small_model):
    before = weights_sha256(small_model)
    assert weights_sha256(copy.deepcopy(small_model)) == before == digest_of(small_model.state_dict())
    for name in ("trans_1.norm1.bias", "bn1.running_mean", "bn1.num_batches_tracked"):
        changed = copy.deepcopy(small_model)
        changed.state_dict()[name].add_(1)
        assert weights_sha256(changed) != before
