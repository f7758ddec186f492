"""What the tests of the CUDA executor share, on a pretended GPU and on a real one."""

from collections.abc import Callable

import lookalikes
import torch
from torch import Tensor

from conformer_fast import Conformer, ConformerConfig
from conformer_fast.inference.lower import lower
from conformer_fast.inference.network import InferenceConformer
from conformer_fast.model.distance import relative_error

TINY = ConformerConfig(embed_dim=32, num_heads=2, depth=3, channel_ratio=1, mlp_ratio=1, num_classes=7)


def images(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def inference_model(config: ConformerConfig = TINY, dtype: torch.dtype = torch.float32) -> InferenceConformer:
    return lower(lookalikes.fill(Conformer(config)).eval()).in_precision(dtype)


def assert_same(results, expected, tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < tolerance


def equal(results, expected) -> bool:
    return all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


def strided(batch: Tensor) -> Tensor:
    wide = torch.full((*batch.shape[:3], 2 * batch.shape[3]), torch.nan, dtype=batch.dtype, device=batch.device)
    wide[..., ::2] = batch
    return wide[..., ::2]


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": lambda batch: batch.contiguous(),
    "NHWC": lambda batch: batch.contiguous(memory_format=torch.channels_last),
    "transposed": lambda batch: batch.transpose(2, 3).contiguous().transpose(2, 3),
    "columns of a wider tensor": strided,
    "with an offset": lambda batch: torch.cat([batch[:1], batch])[1:],
    "float16": lambda batch: batch.half(),
    "bfloat16": lambda batch: batch.bfloat16(),
    "float64": lambda batch: batch.double(),
    "NHWC float16": lambda batch: batch.half().contiguous(memory_format=torch.channels_last),
}
