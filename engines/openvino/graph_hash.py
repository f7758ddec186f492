"""The sha256 of the graph that an engine is built from, known without writing the graph again.

An engine is kept under the hash of its graph. Writing that takes seconds, loading the engine a fraction of one, so the
hash itself is kept, under all that decides the graph: the weights, what is asked of them, and the code that writes it.
After a change of that code the graph is written and hashed again, and the engine is built again if it is another graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

import conformer_fast.inference
import conformer_fast.model
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.digest import weights_sha256
from conformer_fast.model.reference import Conformer
from conformer_fast.version import __version__

from .. import onnx
from ..cache import remembered

CODE = conformer_fast.model, conformer_fast.inference, onnx  # the rooms that decide a graph, with this one


def remembered_sha256(
    reference: Conformer,
    outputs: Sequence[str],
    quantization: Quantization | None,
    graph: Callable[[], bytes],
) -> str:
    """Of what `graph` returns, which is called only if this was never asked before of these arguments and this code."""
    decided_by = {
        "weights": weights_sha256(reference),
        "config": asdict(reference.config),
        "pad": reference.pad,
        "outputs": list(outputs),
        "quantization": quantization and quantization.digest,
        "code": _code_sha256(),
        "versions": [__version__, torch.__version__],
    }
    return remembered(decided_by, lambda: hashlib.sha256(graph()).hexdigest())


@cache
def _code_sha256() -> str:
    folders = [Path(folder) for package in CODE for folder in package.__path__]
    digest = hashlib.sha256()
    for file in sorted(file for folder in [*folders, Path(__file__).parent] for file in folder.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
