"""load(): a compiled model from its bundle, which starts elsewhere without the model it was made from.

All of a bundle is verified, then what it needs is compared with what is here, and only then is anything handed to a
runtime.
"""

from __future__ import annotations

import os
from typing import Any

from ..bundles.manifest import DetectorManifest
from ..errors import ArgumentError
from .bundled import opened
from .fast_conformer import FastConformer, loaded
from .fast_detector import FastDetector, loaded_detector


def load(folder: str | os.PathLike[str], *, key: bytes | None = None, **options: Any) -> FastConformer | FastDetector:
    """The compiled model in a bundle, which its `save` or `conformer_fast.build` wrote: a FastDetector if it is one.

    key:     what it must be signed with, a secret or the bytes of a public key's PEM file; without one, only damage is
             noticed. Running an engine is running whatever its writer put into it: load none from strangers. A signed
             bundle loads without its key too. It takes no engine from the cache, and only with a secret are the kernels
             that TensorRT-RTX compiles kept beside it.
    options: of the bundle's backend, as in `compile`: threads= of "native", threads= and device= of "openvino",
             tune= of "triton"

    Every file's hash is compared before anything is interpreted. Raises BundleError for a folder that is no whole,
    unchanged bundle; EngineMismatchError, which is one, when it does not fit this machine; BackendError for an option
    that its backend does not have, or that the bundle decides, as the shapes of "tensorrt".
    """
    bundle, backend = opened(folder, options, key)
    made = loaded_detector if isinstance(bundle.manifest, DetectorManifest) else loaded
    return made(bundle, backend, key)


def load_classifier(folder: str | os.PathLike[str], *, key: bytes | None = None, **options: Any) -> FastConformer:
    """The same for what runs Conformers alone. Raises ArgumentError for a detector's bundle too."""
    bundle, backend = opened(folder, options, key)
    if isinstance(bundle.manifest, DetectorManifest):
        raise ArgumentError(
            f"{bundle.folder} holds a detector, and a classifier or a backbone is asked for; `conformer-fast detect` "
            f"and `conformer-fast evaluate --coco` run detectors"
        )
    return loaded(bundle, backend, key)
