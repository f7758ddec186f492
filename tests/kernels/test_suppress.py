"""Non-maximum suppression by two launches: index by index what PyTorch keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_checks import DEVICE, layouts
from torch import Tensor

from benchmarks.judge import poisoned_memory
from conformer_fast.kernels import launch, suppress
from conformer_fast.kernels.suppress import kept_of, nms
from conformer_fast.model.detector import operators
from conformer_fast.model.detector.boxes import overlaps

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of boxes behind the last


def sample(N: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of which many overlap, scores of which many are equal, and three groups."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(N, 2, generator=random) * 60
    boxes = torch.cat([corners, corners + 5 + torch.rand(N, 2, generator=random) * 30], 1)
    return boxes, (torch.rand(N, generator=random) * 50).round() / 50, torch.randint(3, (N,), generator=random)


def check(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    """What is kept, which must be what operators.nms keeps."""
    with poisoned_memory():
        found = nms(boxes.to(DEVICE), scores.to(DEVICE), groups.to(DEVICE), threshold)
    assert found.dtype == torch.int64
    assert found.tolist() == operators.nms(boxes, scores, groups, threshold).tolist()
    return found.tolist()


@pytest.mark.parametrize("N", [0, 1, 31, 32, 33, 64, 65, 100, 257])
def test_random_boxes(N):
    for threshold in (0.7, 0.3, 0.0):
        kept = check(*sample(N, N), threshold)
    assert N < 31 or 3 < len(kept) < N


def test_nothing_overlaps():
    boxes, scores, groups = sample(70)
    boxes = boxes + 100 * torch.arange(70)[:, None]
    assert len(check(boxes, scores, groups, 0.0)) == 70


def test_everything_overlaps():
    """Equal boxes: of each group the best one is kept, of equal scores the first."""
    _, _, groups = sample(70)
    boxes = torch.tensor([[3.0, 4.0, 5.0, 9.0]]).expand(70, 4)
    firsts = [groups.tolist().index(group) for group in range(3)]
    assert check(boxes, torch.ones(70), groups, 0.5) == sorted(firsts)
    assert check(boxes, torch.arange(70.0), torch.zeros(70, dtype=torch.long), 0.5) == [69]


def test_each_removes_the_next():
    """So that every second one is kept: what a box does depends on all before it."""
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]) + 0.4 * torch.arange(140)[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    scores = torch.arange(140.0).flip(0)
    assert check(boxes, scores, torch.zeros(140, dtype=torch.long), 0.3) == [*range(0, 140, 2)]


def test_overlaps_at_the_threshold():
    """Only more removes: each threshold is the overlap of two boxes, to the last bit."""
    boxes, _, _ = sample(40)
    every = overlaps(boxes, boxes)
    thresholds = every[every > 0.1].unique().tolist()
    assert len(thresholds) > 50
    for threshold in thresholds:
        found = kept_of(boxes.to(DEVICE), torch.zeros(40, device=DEVICE), threshold)
        assert found.tolist() == operators._plain_best(boxes, threshold).tolist()
    half, whole = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]]), torch.zeros(2)
    assert check(half, whole, whole.long(), 0.5) == [0, 1]
    assert check(half, whole, whole.long(), 0.4999999) == [0]


def test_groups_are_apart_whatever_their_numbers():
    boxes = torch.tensor([[3.0, 4.0, 5.0, 9.0]]).expand(6, 4)
    groups = torch.tensor([-1, 2**40, 0, 2**40, 2**40 + 1, -1])
    assert check(boxes, torch.arange(6.0), groups, 0.5) == [5, 4, 3, 2]


def test_boxes_without_area_and_nan():
    """Their overlap is 0, or NaN, which removes nothing."""
    boxes, scores, groups = sample(40)
    boxes[::4, 2:] = boxes[::4, :2]
    boxes[1::4] = boxes[1].clone()
    boxes[2::8, 1] = torch.nan
    check(boxes, scores, groups, 0.1)
    check(boxes, torch.where(torch.arange(40) % 5 == 0, torch.nan, scores), groups, 0.1)


def test_layouts_and_precisions():
    boxes, scores, groups = sample(50)
    for others in layouts([boxes, scores, groups.float()]):
        check(*others, 0.3)
        found = kept_of(others[0].to(DEVICE), groups.repeat_interleave(2)[::2].to(DEVICE), 0.3)
        assert torch.equal(found, kept_of(boxes.to(DEVICE), groups.to(DEVICE), 0.3))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        check(boxes.to(dtype), scores.to(dtype), groups.int(), 0.3)


def test_rows_in_pieces(monkeypatch):
    """As where words are many."""
    expected = check(*sample(150), 0.3)
    monkeypatch.setattr(suppress, "GATHERED", 64)
    assert check(*sample(150), 0.3) == expected


def test_launches():
    with launch.recording() as launched:
        kept_of(torch.empty(20_000, 4, device="meta"), torch.empty(20_000, device="meta"), 0.5)
        none = kept_of(torch.empty(0, 4, device="meta"), torch.empty(0, device="meta"), 0.5)
    assert none.shape == (0,)
    assert [one.kernel.fn.__name__ for one in launched] == ["removes_kernel", "kept_kernel"]
    assert [one.grid for one in launched] == [(625, 313), (1,)]
    assert (launched[1].arguments["BLOCK_WORDS"], launched[1].arguments["BLOCK_ROWS"]) == (1024, 8)


UNFUSED = """
import re
from benchmarks.kernels_report import assembled, between_networks, binary_of
from conformer_fast.kernels.suppress import removes_kernel
launch = next(launch for _, launch in between_networks() if launch.kernel is removes_kernel)
ptx = assembled(binary_of(launch, 90)).asm["ptx"]
added = re.findall(r"fma[.]rn[.]f32 .*, (\\S+);", ptx)
assert len(added) > 10 and set(added) == {"0f00000000"}, added
assert not re.search(r"mul[.](ftz[.])?f32", ptx)
"""


def test_no_product_is_fused_into_a_sum():
    """Each has 0 added to it, and the assembler finds no other one that it might fuse."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", UNFUSED], cwd=ROOT, env=environment, check=True, timeout=120)
