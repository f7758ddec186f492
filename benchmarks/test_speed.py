"""Every implementation on every variant at batch 1 and 8, checked and then timed.

Each round of a candidate is preceded by one of its rival (OpenVINO on the unfused model, same precision), so the stored
ratio is a median over pairs and survives a machine whose speed drifts. Each is in a process of its own, and what is
timed is its own clock. Both are new: a rival that all candidates of a point took turns with became up to a fifth slower
than itself. Run by `make bench`.
"""

from __future__ import annotations

import statistics

import pytest

import conformer_fast as cf
from conformer_fast.engines.openvino.device import native_precisions

from .cpu import product_floor
from .isolated import Clock, Isolated, PeerError
from .peers import PEERS, rival_of

ERROR = {"fp32": 1e-4, "bf16": 5e-2}  # of the logits; a wrong implementation is off by about 1
SECONDS = 6.0  # for one candidate and its rival together
ROUNDS = (5, 30)  # fewest and most
HERE = [name for name, peer in PEERS.items() if peer.precision in native_precisions()]


CLOCK = Clock()


@pytest.mark.timeout(1800)
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("batch", [1, 8], ids=lambda batch: f"B{batch}")
@pytest.mark.parametrize("variant", cf.VARIANTS)
def test_benchmark_speed(benchmark, rates, variant, batch, implementation):
    benchmark.group = f"{variant} B{batch}"
    benchmark.extra_info.update(variant=variant, batch=batch, implementation=implementation)
    precision = PEERS[implementation].precision
    try:
        candidate = Isolated(implementation, variant, batch)
    except PeerError as error:  # a peer that cannot run the model is a result too
        if implementation.startswith("conformer_fast"):
            raise
        benchmark.extra_info.update(failed=str(error))
        benchmark.pedantic(lambda: None, rounds=1)
        return
    with candidate, Isolated(rival_of(implementation), variant, batch) as rival:
        assert candidate.error < ERROR[precision]
        seconds = rival.seconds() + candidate.seconds()
        pairs: list[float] = []
        benchmark.pedantic(
            CLOCK.running(candidate),
            setup=lambda: pairs.append(rival.seconds()),
            rounds=max(ROUNDS[0], min(ROUNDS[1], round(SECONDS / seconds))),
        )
    own = benchmark.stats.stats.data
    ratio = statistics.median(theirs / mine for theirs, mine in zip(pairs, own, strict=True))
    benchmark.extra_info.update(
        error=candidate.error,
        precision=precision,
        speedup_over_rival=ratio,
        rival_seconds=pairs,
        share_of_floor=product_floor(variant, batch, precision, rates) / statistics.median(own),
    )
