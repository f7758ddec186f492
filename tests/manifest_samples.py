"""A small bundle of no engine, and how it is read."""

from __future__ import annotations

from pathlib import Path

from conformer_fast import ConformerConfig, ConformerOutput
from conformer_fast.bundles.folder import Bundle, read_bundle
from conformer_fast.bundles.manifest import Format, Manifest
from conformer_fast.model.shapes import Shapes

KEY = b"a secret of 24 bytes ..."
FILES = {"model.plan": bytes(range(256)) * 4, "labels.txt": b"cat\ndog\n"}
MANIFEST = Manifest(
    backend="tensorrt",
    precision="int8",
    precisions={"products": "int8", "tokens": "fp32"},
    config=ConformerConfig(depth=3, num_classes=2),
    pad="none",
    outputs=("3.map", "conv_logits", "trans_logits"),
    structure=["3.map", (ConformerOutput("conv_logits", "trans_logits"),)],
    shapes=(Shapes(), Shapes(batch=(1, 1, 2), width=(224, 320, 448))),
    runtime={"flavor": "tensorrt-rtx", "version": "1.7.1.116", "targets": ["sm86", "sm120"], "gpu": ""},
    preprocessing=None,
    labels="labels.txt",
    sha256={"weights": "00", "onnx": None},
    rebuild="conformer-fast build ...",
    measured={"error": {"conv_logits": 1e-3}, "images": 8},
)
FORMAT = Format(
    files=("model.plan",),
    runtime={"flavor": str, "version": str, "targets": list, "gpu": str},
    sized=True,
    read_once=("model.plan",),
)


def read(folder: Path, key: bytes | None = None) -> Bundle:
    return read_bundle(folder, format_of, key)


def format_of(backend: str) -> Format:
    if backend != "tensorrt":
        raise ValueError(f"no backend is called {backend!r}")
    return FORMAT
