"""The network as a graph of its operators (ops.py)."""

from __future__ import annotations

import threading

from torch import fx, nn

_ONE_AT_A_TIME = threading.Lock()


def trace(network: nn.Module) -> fx.GraphModule:
    """Traced symbolically: no size of any image is in it. Callable from any thread, and other threads run on."""
    with _ONE_AT_A_TIME:
        tracer = _Tracer()
        return fx.GraphModule(network, tracer.trace(network))


class _Tracer(fx.Tracer):
    """Sees the calls of its own thread only: fx changes nn.Module for the whole process while it traces."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m, forward, args, kwargs):
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
