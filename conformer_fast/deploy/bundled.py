"""A bundle as it is opened, whatever model it holds: verified, its backend chosen, its class names read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundles.folder import Bundle, StoredEngine, read_bundle, write_bundle
from ..engines.base import Backend, Settings
from ..engines.registry import format_of, make
from ..errors import ArgumentError, BundleError, shown
from ..model.recipe import check_label_lines
from .save import check_labels, label_lines


def opened(
    folder: str | os.PathLike[str], options: Mapping[str, Any], key: bytes | None = None, digest: str | None = None
) -> tuple[Bundle, Backend]:
    """The bundle and the backend that runs it. digest: of the only bundle that will do."""
    bundle = read_bundle(folder, format_of, key)
    if digest not in (None, bundle.digest):
        raise BundleError(f"{bundle.folder} holds another bundle than when the model was copied; load it anew")
    return bundle, make(bundle.manifest.backend, options)


def settings_of(stored: StoredEngine, backend: Backend) -> Settings:
    """How a stored engine runs here. Raises BundleError and EngineMismatchError if it cannot."""
    manifest = stored.manifest
    try:
        backend = backend.for_bundle(manifest)
    except ArgumentError as error:
        raise BundleError(f"{stored.folder} has an engine that cannot be: {error}; make the bundle again") from error
    return Settings(backend, manifest.precision, backend.fits(manifest))


def reason_of(bundle: Bundle) -> str:
    """Why its model runs as it does, in one line."""
    return f"{bundle.manifest.backend} {bundle.manifest.precision}: from {bundle.folder.name}"


def labels_of(bundle: Bundle) -> tuple[str, ...]:
    """The classes' names; none of a model without heads. Raises BundleError for a file that holds something else."""
    manifest = bundle.manifest
    if manifest.labels is None:
        return ()
    try:
        labels = tuple(bundle.read(manifest.labels).decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{bundle.folder / manifest.labels} is not UTF-8 ({error}); make the bundle again") from error
    if len(labels) != manifest.config.num_classes:
        raise BundleError(f"{bundle.folder} has {len(labels)} labels for {manifest.config.num_classes} classes")
    try:
        check_label_lines(labels)
    except ArgumentError as error:
        raise BundleError(f"{bundle.folder / manifest.labels}: {shown(error)}; make the bundle again") from error
    return labels


def copied(bundle: Bundle, folder: str | os.PathLike[str], labels: Sequence[str] | None, key: bytes | None) -> Path:
    """Writes a verified bundle's files to another folder, with other labels if they are given."""
    manifest = bundle.manifest
    files = {name: bundle.read(name) for name in manifest.files}
    if labels is not None:
        check_labels(labels, manifest.config)
        if manifest.labels is None:
            raise BundleError(f"{bundle.folder} has no scores that could have labels")
        files[manifest.labels] = label_lines(labels)
    return write_bundle(folder, replace(manifest, files={}), files, key)
