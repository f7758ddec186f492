"""The sha256 of the graph that an engine is built from, known without writing the graph again.

An engine is kept under the hash of its graph. Writing that takes seconds, loading the engine a fraction of one, so the
hash itself is kept, under all that decides the graph: the weights, what is asked of them, and the code that writes it.
After a change of that code the graph is written and hashed again, and the engine is built again if it is another graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import conformer_fast.inference
import conformer_fast.model
from conformer_fast.inference.lower import Lowered
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.digest import weights_sha256
from conformer_fast.model.reference import Conformer
from conformer_fast.storage.sources import sources_sha256
from conformer_fast.version import __version__

from .. import onnx
from ..cache import remembered

CODE = conformer_fast.model, conformer_fast.inference, onnx  # the rooms that decide a graph, with this one


def remembered_sha256(
    reference: Lowered,
    outputs: Sequence[str],
    quantization: Quantization | None,
    attended: bool,
    graph: Callable[[], bytes],
) -> str:
    """Of what `graph` returns, which is called only if this was never asked before of these arguments and this code.

    Where the sources are missing, or were changed since they were imported, nothing is remembered.
    """

    def sha256() -> str:
        return hashlib.sha256(graph()).hexdigest()

    if IMPORTED is None or _code_sha256() != IMPORTED:
        return sha256()
    decided_by = {
        "weights": weights_sha256(reference),
        "config": asdict(reference.config),
        "network": type(reference).__name__,
        "pad": reference.pad if isinstance(reference, Conformer) else None,
        "outputs": list(outputs),
        "quantization": quantization and [quantization.digest, attended],
        "code": IMPORTED,
        "versions": [__version__, torch.__version__],
    }
    return remembered(decided_by, sha256)


def _code_sha256() -> str | None:
    """Of the sources as they are on disk; None if there are none."""
    return sources_sha256([*(Path(folder) for package in CODE for folder in package.__path__), Path(__file__).parent])


IMPORTED = _code_sha256()
