"""What the tests of verify() share: small images, compiled models, and one with another engine."""

import torch

import conformer_fast as cf
from conformer_fast.checkpoints.adopt import adopt
from conformer_fast.verification.verify import Report
from conformer_fast.verification.verify import verify as verify_against

COUPLED = ("fcu_down", "tokens", "fcu_up", "map")
BLOCKS = ["1.tokens", "1.map", *(f"{block}.{kind}" for block in (2, 3) for kind in COUPLED)]
LOGITS = ["conv_logits", "trans_logits"]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def names(rows) -> list[str]:
    return [row.name for row in rows]


def compiled(model, backend: str = "reference", precision: str = "fp32") -> cf.FastConformer:
    return cf.compile(model, backend=backend, precision=precision)


def verify(fast: cf.FastConformer, batch: torch.Tensor) -> Report:
    return verify_against(fast, batch, fast.reference, fast.engine)


def run_by(engine, fast: cf.FastConformer) -> cf.FastConformer:
    """The same model, but this engine makes its results."""
    return cf.FastConformer(engine, fast.settings, fast.reason, adopt(fast.reference), fast.labels)
