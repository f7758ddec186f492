"""Bundles of every backend where there is no GPU, and no TensorRT to run their plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lookalikes
import pytest
import torch
from torch import Tensor, nn

import conformer_fast as cf
from conformer_fast.bundles.folder import read_bundle, write_bundle
from conformer_fast.checkpoints.adopt import adopt
from conformer_fast.deploy.save import save
from conformer_fast.engines.base import Contents, Settings
from conformer_fast.engines.registry import format_of
from conformer_fast.engines.tensorrt import backend as backend_module
from conformer_fast.engines.tensorrt import engine as engine_module
from conformer_fast.errors import BackendError, EngineError
from conformer_fast.model.reference import Conformer
from conformer_fast.model.shapes import Shapes

KEY = b"a secret of 24 bytes ..."
PLAN = bytes(range(256)) * 64
REBUILD = "conformer-fast build ..."
SHAPES = Shapes(batch=(1, 2, 4), height=(32, 32, 64), width=(32, 32, 64))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module) -> nn.Module:
    lookalikes.fill(model)
    model.eval()
    return model


def same(ours: Any, theirs: Any) -> bool:
    """The same containers, the same values to the last bit."""
    if isinstance(theirs, Tensor):
        return torch.equal(ours, theirs)
    return type(ours) is type(theirs) and all(same(*parts) for parts in zip(ours, theirs, strict=True))


def need_openvino() -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")


@dataclass(frozen=True)
class Plans(backend_module.TensorRT):
    """A TensorRT that writes bundles of any bytes for a plan, of "sm86" and "sm120" if it is not told otherwise."""

    shapes: tuple[Shapes, ...] = (SHAPES,)
    flavor: str = "tensorrt"
    targets: tuple[str, ...] = ("sm86", "sm120")
    plan: bytes = PLAN
    gpu: str = ""

    def check(self, settings: Settings) -> None:
        pass

    def graph(self, reference: Conformer, settings: Settings, outputs: Sequence[str]) -> None:
        return None

    def contents(self, reference: Conformer, settings: Settings, *_: Any) -> Contents:
        runtime = {"flavor": self.flavor, "version": "10.13.2.6", "targets": list(self.targets), "gpu": self.gpu}
        return Contents({backend_module.PLAN: self.plan}, {"products": settings.precision}, runtime, self.shapes)


def write_plan(
    folder: Path,
    model: nn.Module,
    *,
    precision: str = "fp16",
    outputs: Sequence[str] | None = None,
    key: bytes | None = None,
    **options: Any,
) -> Path:
    """A bundle of `Plans` with these options. outputs: default: what the model returns."""
    source = adopt(model)
    if outputs:
        source = replace(source, outputs=tuple(outputs), structure=list(outputs))
    return save(folder, source, Settings(Plans(**options), precision), rebuild_with=REBUILD, key=key)


def saved(folder: Path, backend: str, model: nn.Module, key: bytes | None = None) -> Path:
    """A bundle of the model, for which one size has run."""
    if backend == "tensorrt":
        return write_plan(folder, model, key=key)
    fast = cf.compile(model, backend=backend, precision="fp32")
    fast(images(1, 3, 32, 32))
    return fast.save(folder, key=key)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replaces one file of a bundle, with a manifest that says so."""
    read = read_bundle(folder, format_of)
    files = {known: content if known == name else read.read(known) for known in read.manifest.files}
    write_bundle(folder, read.manifest, files)


class FakeTensorRT:
    """A TensorRT that runs the reference instead of `PLAN`, on a GPU "sm86". made: the arguments of each engine."""

    def __init__(self, model: Conformer) -> None:
        self.model, self.made = model, []
        self.flavor = SimpleNamespace(name="tensorrt", version="10.13.2.6", has_runtime_cache=False)
        self.target: str | None = "sm86"

    def get_flavor(self, name: str) -> SimpleNamespace:
        if name != self.flavor.name:
            raise BackendError("TensorRT-RTX is not installed: pip install ...")
        return self.flavor

    def engine(self, plan: bytes, flavor: Any, outputs: Any, device: torch.device, runtime_cache: Any = None) -> Any:
        self.made.append((plan, flavor, outputs, device, runtime_cache))
        if plan != PLAN:
            raise EngineError("TensorRT cannot load the plan")

        def run(batch: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return tuple(self.model(batch))

        return run


@contextmanager
def fake_runtime(model: Conformer) -> Iterator[FakeTensorRT]:
    """Inside, this is the TensorRT that runs plans."""
    fake = FakeTensorRT(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module, "get_flavor", fake.get_flavor)
        patch.setattr(backend_module, "gpu_target", lambda: fake.target)
        patch.setattr(engine_module, "TensorRTEngine", fake.engine)
        patch.setattr(torch.cuda, "get_device_name", lambda: "Pretended 4090")
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        yield fake
