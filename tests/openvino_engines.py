"""CPU engines of the small model, and what they must return."""

import torch

import conformer_fast as cf
from conformer_fast.engines import cache


def kept_engines() -> list[cache.CachedEngine]:
    """Those that run, without what holds their weights. The last used first."""
    return [entry for entry in cache.cached_engines() if "height" in entry.fields]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compiled(model, **options) -> cf.FastConformer:
    return cf.compile(model, backend="openvino", **{"precision": "fp32", **options})


def assert_right(results, model, batch) -> None:
    with torch.no_grad():
        for ours, expected in zip(results, model(batch), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
