"""The network as a graph of its operators (ops.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


def trace(network: nn.Module) -> fx.Graph:
    """What the network calls, its images unknown: no size of any is in it. Buffers are read by `get_attr` nodes.

    Callable from any thread, and other threads run on: `fx.symbolic_trace` would change nn.Module for the whole process
    while it traces. A network that is a straight line of operators needs none of that.
    """
    recorder = _Recorder(network)
    results = network.forward(recorder.create_proxy("placeholder", "images", (), {}))
    recorder.create_node("output", "output", (recorder.create_arg(results),), {})
    return recorder.graph


class _Recorder(fx.proxy.GraphAppendingTracer):
    """Writes a node for each operator that is called with what an earlier one returned."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(fx.Graph())
        self._names = {id(tensor): name for name, tensor in network.named_buffers()}

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            return self.create_node("get_attr", self._names[id(a)], (), {})
        return super().create_arg(a)
