"""The network operator by operator through the kernels, without a CUDA graph: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from conformer_fast.errors import BackendError
from conformer_fast.inference import ops
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.inference.trace import trace
from conformer_fast.model.precision import DTYPES, around, tf32_as_asked
from conformer_fast.model.reference import Conformer
from conformer_fast.progress import Bar

from ..base import Outcome, Runner
from .backend import INTERPRET, Triton, interpreted


class Kernels(Runner):
    """Our Triton kernels, one after the other."""

    def slow(self) -> str | None:
        return "no GPU: Triton's interpreter runs the kernels, for minutes an image of 224x224" if _no_gpu() else None

    def prepare(self) -> None:
        """Has Triton's interpreter run the kernels where there is no GPU."""
        if _no_gpu() and not torch.cuda.is_available():
            os.environ.setdefault(INTERPRET, "1")

    def run(
        self,
        reference: Conformer,
        outputs: Sequence[str],
        precision: str,
        quantization: Quantization | None,
        images: Tensor,
    ) -> Outcome:
        on_cpu = _no_gpu()
        if on_cpu:
            _check_interpreter(precision)
        from conformer_fast.kernels import dispatch

        device = "cpu" if on_cpu else Triton().torch_device()
        dtype = DTYPES[around(precision)]
        model = lower(reference, outputs, around(precision), quantization).to(device)
        calls = [node for node in trace(model).nodes if node.op == "call_function"]
        total = sum(ops.operation_of(node) in ops.OPS for node in calls)
        unsupported: list[str] = []

        def decide(call: dispatch.Call) -> dispatch.Choice:
            progress.update(2 if call.operation == "conv1x1_pair" else 1)  # of what the trace has apart
            if call.plan.unsupported:
                unsupported.append(call.plan.unsupported)
                return dispatch.PYTORCH
            if on_cpu:  # the fewest programs: each of their instructions takes as long for a small tile
                return max(call.plan.tiles, key=lambda tile: tile.m * tile.n)
            return call.plan.tiles[0] if call.choice == dispatch.PYTORCH else call.choice

        with (
            Bar(f"kernels {precision}", total, "call") as progress,
            torch.no_grad(),
            torch.autocast(torch.device(device).type, enabled=False),
            tf32_as_asked(dtype),
            ops.on_kernels(),
            dispatch.deciding(decide),
        ):
            values = model(images.to(device))
        how = "Triton's interpreter" if on_cpu else torch.cuda.get_device_name(device)
        if unsupported:
            how += f"; {len(unsupported)} of {total} calls by PyTorch: {unsupported[0]}"
        return Outcome(how, device, values, len(unsupported))


def _no_gpu() -> bool:
    """Whether Triton's kernels would run in its interpreter on the CPU, as no GPU can take them."""
    return Triton().missing() is not None


def _check_interpreter(precision: str) -> None:
    """Raises BackendError unless Triton's interpreter can compute in this precision here."""
    if find_spec("triton") is None:
        raise BackendError('triton not installed: pip install "conformer-fast[triton]"')
    if not interpreted():
        missing = Triton().missing()
        raise BackendError(f"{missing}, and {INTERPRET}=1 is not set: with it, from the start, kernels are interpreted")
    if precision == "bf16":
        raise BackendError(
            "Triton's interpreter multiplies the bit patterns of bfloat16 (triton-lang/triton#11584); "
            "take fp16 or fp32, or a GPU"
        )
