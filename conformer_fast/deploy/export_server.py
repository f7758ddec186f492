"""export_server(): a bundle's engine as a model of NVIDIA Triton Inference Server."""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from pathlib import Path

from ..bundles.folder import bundle_path, read_bundle
from ..bundles.manifest import Manifest
from ..engines.registry import format_of, make
from ..errors import ArgumentError, BundleError, a_path, shown, whole


def export_server(
    bundle: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    instances: int = 1,
    key: bytes | None = None,
) -> Path:
    """Adds the engine in `bundle` to a model repository, and returns the model's folder.

    repository: a folder; it may exist
    name:       what clients call the model: letters, digits, "_", "-" and "."; default: that of the bundle's folder
    instances:  how many batches run at once on each GPU, each in its own working memory
    key:        what the bundle is signed with, if that is to be verified

    Raises BundleError when the bundle is damaged, the server does not run its engine, or the repository has such a
    model or cannot be written; ArgumentError for a name or number that cannot be.
    """
    bundle, repository = bundle_path(bundle), a_path("the repository", repository)
    name = bundle.resolve().name if name is None else name
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ArgumentError(f"a model's name has letters, digits, '_', '-' and '.', got {shown(repr(name))}")
    instances = whole("instances", instances)
    read = read_bundle(bundle, format_of, key)
    if not isinstance(read.manifest, Manifest):
        raise BundleError(f"{bundle} holds a detector, and the server's models are classifiers and backbones")
    files = make(read.manifest.backend).served(read.engines()[""], name, instances)
    folder = repository / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{name}-{uuid.uuid4().hex}")
        unfinished.mkdir()
        try:
            if folder.is_dir():  # stays as private as it is
                unfinished.chmod(stat.S_IMODE(folder.stat().st_mode))
            for file, content in files.items():
                (unfinished / file).parent.mkdir(exist_ok=True)
                (unfinished / file).write_bytes(content)
            unfinished.rename(folder)  # fails where there is a folder that is not empty
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except (OSError, ValueError) as error:  # ValueError: no file's name
        raise BundleError(f"{shown(folder)} cannot be written: {error}; remove it, or choose another name") from error
    return folder
