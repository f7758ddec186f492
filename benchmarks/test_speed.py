"""Every implementation on every variant at batch 1 and 8, checked and then timed.

Each round of a candidate is preceded by one of its rival (OpenVINO on the unfused model, same precision), so the stored
ratio is a median over pairs and survives a machine whose speed drifts. Run by `make bench`.
"""

from __future__ import annotations

import statistics
from functools import lru_cache

import pytest
import torch

import conformer_fast as cf
from conformer_fast.engines.timing import seconds_of
from conformer_fast.model.distance import relative_error

from .peers import PEERS, rival_of

ERROR = {"fp32": 1e-4, "bf16": 5e-2}  # of the logits; a wrong implementation is off by about 1
SECONDS = 6.0  # for one candidate and its rival together
ROUNDS = (5, 30)  # fewest and most


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("implementation", PEERS)
@pytest.mark.parametrize("batch", [1, 8], ids=lambda batch: f"B{batch}")
@pytest.mark.parametrize("variant", cf.VARIANTS)
def test_benchmark_speed(benchmark, variant, batch, implementation):
    benchmark.group = f"{variant} B{batch}"
    benchmark.extra_info.update(variant=variant, batch=batch, implementation=implementation)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    peer = PEERS[implementation]
    with torch.inference_mode():
        expected = _model(variant)(images).logits
        try:
            run = peer.build(_model(variant), images)
        except Exception as error:  # a peer that cannot run the model is a result too
            if implementation.startswith("conformer_fast"):
                raise
            message = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
            benchmark.extra_info.update(failed=message)
            benchmark.pedantic(lambda: None, rounds=1)
            return
        rival = PEERS[rival_of(implementation)].build(_model(variant), images)
        error = relative_error(run(images).float(), expected)
        assert error < ERROR[peer.precision]
        seconds = seconds_of(rival, images) + seconds_of(run, images)
        pairs: list[float] = []
        benchmark.pedantic(
            run,
            args=(images,),
            setup=lambda: pairs.append(seconds_of(rival, images)),
            rounds=max(ROUNDS[0], min(ROUNDS[1], round(SECONDS / seconds))),
        )
    own = benchmark.stats.stats.data
    ratio = statistics.median(theirs / mine for theirs, mine in zip(pairs, own, strict=True))
    benchmark.extra_info.update(error=error, precision=peer.precision, speedup_over_rival=ratio, rival_seconds=pairs)


@lru_cache(maxsize=1)
def _model(variant: str) -> cf.Conformer:
    torch.manual_seed(0)
    return cf.create_model(variant)
