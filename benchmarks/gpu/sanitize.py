"""Every kernel once, on a small network: what compute-sanitizer watches."""

from __future__ import annotations

import torch

from conformer_fast.config import ConformerConfig
from conformer_fast.fuse import fuse
from conformer_fast.kernels import dispatch
from conformer_fast.model import Conformer

CONFIG = ConformerConfig(channel_ratio=1, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2, num_classes=7)


def main() -> None:
    fused = fuse(Conformer(CONFIG).eval())
    images = torch.randn(2, 3, 64, 48, device="cuda")
    for dtype in (torch.float16, torch.float32):
        model = fused.with_outputs(fused.output_names).in_precision(dtype).cuda()
        with torch.inference_mode(), dispatch.calls() as made:
            model(images)
        torch.cuda.synchronize()
        missing = set(dispatch.PLANS) - {call.operation for call in made if call.choice != dispatch.PYTORCH}
        assert not missing, f"no kernel ran for {missing}"
    print("every kernel ran")


if __name__ == "__main__":
    main()
