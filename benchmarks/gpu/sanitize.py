"""Every kernel in every precision, on a small network: what compute-sanitizer watches."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.recorded import usual
from conformer_fast.engines.cuda import CAPABILITY_FP8
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.kernels import dispatch
from conformer_fast.kernels.regions import read_regions
from conformer_fast.kernels.suppress import kept_of
from conformer_fast.model.config import ConformerConfig
from conformer_fast.model.precision import FORMATS, around
from conformer_fast.model.reference import Conformer

CONFIG = ConformerConfig(channel_ratio=1, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2, num_classes=7)

OTHERS = {  # shapes of what only larger maps have, and only detectors
    "conv1x1_pair": ((2, 8, 7, 24), (96, 24), (96,), (2, 8, 7, 96), (40, 96), (40,)),
    "lateral": ((2, 8, 6, 24), (40, 24), (40,), (2, 4, 3, 40)),
}


def between_networks() -> None:
    """The kernels between a detector's networks: boxes and regions of every size, with some beyond the image."""
    corners = torch.randn(70, 2, device="cuda") * 60
    boxes = torch.cat([corners, corners + torch.randn(70, 2, device="cuda").exp() * 60], 1)
    kept_of(boxes, (boxes[:, 0] > 0).long(), 0.5)
    for dtype in (torch.float32, torch.float16):
        maps = [torch.randn(side, side, 40, dtype=dtype, device="cuda").permute(2, 0, 1) for side in (32, 16, 8, 4)]
        read_regions(maps, boxes, (4, 8, 16, 32), 7)


def run() -> dict[str, Any]:
    reference = Conformer(CONFIG).eval()
    network = lower(reference)
    images = torch.randn(2, 3, 64, 48, device="cuda")
    between_networks()
    for precision in ("fp32", "fp16", *FORMATS):
        if precision == "fp8" and torch.cuda.get_device_capability() < CAPABILITY_FP8:
            continue
        quantization = usual(network, precision) if precision in FORMATS else None
        model = lower(reference, network.output_names, around(precision), quantization).cuda()
        with torch.inference_mode(), dispatch.calls() as made:
            model(images)
            for name, shapes in OTHERS.items() if precision == "fp16" else ():
                ops.OPS[name](*(torch.randn(shape, dtype=torch.float16, device="cuda") for shape in shapes))
        torch.cuda.synchronize()
        missing = set(dispatch.PLANS) - {call.operation for call in made if call.choice != dispatch.PYTORCH}
        if precision != "fp16":
            missing -= OTHERS.keys()
        assert not missing, f"no kernel ran in {precision} for {missing}"
    return {}
