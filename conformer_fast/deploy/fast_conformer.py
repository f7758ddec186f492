"""FastConformer: a compiled or loaded model, and all that can be done with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..bundles.folder import Bundle, bundle_path
from ..bundles.manifest import Manifest
from ..checkpoints.adopt import Model, Source
from ..engines.base import Backend, Engine, Settings
from ..engines.module import EngineModule
from ..errors import ArgumentError, ConformerFastError
from ..model.digest import weights_sha256
from ..model.outputs import LOGITS, SUM, check_outputs, names_of
from ..model.recipe import class_labels, shown_labels
from ..model.reference import Conformer
from .bundled import copied, labels_of, opened, reason_of, settings_of
from .save import call, on_device, save

if TYPE_CHECKING:
    from ..verification.verify import Report
    from .predict import Predictions


class FastConformer(EngineModule):
    """What `compile` and `load` return. It is called as the model it was made from (EngineModule).

    labels:   one name a class, none for a model without heads
    manifest: what a loaded model's bundle says of itself; None if compiled

    Copies and pickles of a compiled model carry its reference and make the engine again; those of a loaded one load the
    folder again, and refuse another bundle in its place. They carry no key.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        reason: str,
        made_from: Source | Bundle,
        labels: Sequence[str],
    ) -> None:
        if isinstance(made_from, Source):
            of: Any = made_from.reference, made_from.outputs, made_from.structure
        else:
            manifest = cast(Manifest, made_from.manifest)
            of = manifest, manifest.outputs, manifest.structure
        model, outputs, structure = of
        recipe = model.recipe if isinstance(made_from, Source) else replace(model.recipe, labels=labels or None)
        super().__init__(engine, settings, reason, model.config, model.pad, outputs, structure, recipe)
        self._made_from, self.labels = made_from, tuple(labels)

    @property
    def reference(self) -> Conformer | None:
        """The model that defines what is correct here, in fp32 on the CPU; None if loaded."""
        return self._made_from.reference if isinstance(self._made_from, Source) else None

    @property
    def manifest(self) -> Manifest | None:
        return cast(Manifest, self._made_from.manifest) if isinstance(self._made_from, Bundle) else None

    @property
    def identity(self) -> dict[str, Any]:
        if isinstance(self._made_from, Source):
            quantization = self.settings.quantization
            weights = weights_sha256(self._made_from.reference)
            return {"weights": weights, "quantization": quantization and quantization.digest}
        manifest = self._made_from.manifest
        files = {name: stored.sha256 for name, stored in sorted(manifest.files.items())}
        return {"weights": manifest.sha256["weights"], "bundle": files}

    def engine(self, outputs: Sequence[str]) -> Engine:
        """An engine like that of a compiled model that returns these outputs (names of InferenceConformer.outputs).

        Raises ConformerFastError for a loaded model, which has no reference to make one from; ArgumentError for a name
        that is no output.
        """
        if self.reference is None:
            raise ConformerFastError("a loaded model has the engine of its bundle alone; compile the model instead")
        names = check_outputs(outputs, names_of(self.reference))
        return self.settings.backend.engine(self.reference, self.settings, names)

    def verify(self, images: Tensor, reference: Model | None = None) -> Report:
        """Compares with the reference in float64, per head and, if compiled, per block; prints the report, returns it.

        reference: the model that it was made from, anything that `compile` takes; a compiled model has its own

        Raises ArgumentError without a reference, or if it is another model than the one that this was made from.
        """
        from ..verification.verify import verify

        given = None if reference is None else self.reference_of(reference)
        if self.reference is not None:
            report = verify(self, images, self.reference, self.engine, self.settings.quantization)
        elif given is not None:
            report = verify(self, images, given)
        else:
            raise ArgumentError("verify: a loaded model has no reference; give the model that it was made from")
        print(report)
        return report

    def predict(self, paths: Sequence[str | os.PathLike[str]], topk: int = 5, size: int | None = None) -> Predictions:
        """The likeliest classes of picture files.

        topk: classes of each; size: side of the model's input in pixels, default: what the engine or the model is for

        Warns of what the weights do not say and is assumed: `recipe`.

        Raises ArgumentError for a model without heads or channels for pictures.
        """
        from .predict import predict

        shown_labels(self.recipe, self.config)  # warns
        return predict(self, paths, self.labels, topk=topk, size=size)

    def save(
        self, folder: str | os.PathLike[str], *, labels: Sequence[str] | None = None, key: bytes | None = None
    ) -> Path:
        """Writes a bundle, which `conformer_fast.load` runs without the model. Returns its folder.

        labels: the classes' names, in order; default: this model's
        key:    signs the bundle: the bytes of a PEM file with a private key (Ed25519), whose public one `load` takes;
                or a secret of at least 16 bytes (HMAC-SHA256), which `load` takes too

        native: the network, for images of any size. openvino: the graph, and the engines of the sizes run so far; if
        none was, of the usual size, which is built first. On another CPU the graph is built anew. triton: the weights
        as the kernels read them, and the tuned tiles of this GPU. tensorrt: the engine, for the GPUs it was built for.
        A loaded model's bundle is copied.

        A bundle that is there already is replaced. Raises BackendError for the backend "reference", which has nothing
        to save; BundleError when the folder holds anything but a bundle or cannot be written, or when the model returns
        a class that cannot be restored.
        """
        path = bundle_path(folder)
        if isinstance(self._made_from, Bundle):
            return copied(self._made_from, path, labels, key)
        again = call("conformer_fast.compile(model", self.settings) + f").save({path.absolute().name!r})"
        return save(path, self._made_from, self.settings, self._engine, rebuild_with=again, labels=labels, key=key)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._made_from, Source):
            return compiled, (self._made_from, self.settings, self.reason)
        bundle, backend = self._made_from, self.settings.backend
        options = {option.name: getattr(backend, option.name) for option in fields(cast(Any, backend))}
        return reopened, (str(bundle.folder), options, bundle.digest)


def compiled(source: Source, settings: Settings, reason: str) -> FastConformer:
    """The model of these settings, on their device."""
    reference = source.reference
    with on_device(settings.device):
        engine = settings.backend.engine(reference, settings, source.outputs)
    labels = class_labels(reference.recipe, reference.config) if {*LOGITS, SUM} & set(source.outputs) else ()
    return FastConformer(engine, settings, reason, source, labels)


def loaded(bundle: Bundle, backend: Backend, key: bytes | None = None) -> FastConformer:
    """The model in a verified bundle."""
    stored = bundle.engines()[""]
    settings = settings_of(stored, backend)
    labels = labels_of(bundle)
    engine = settings.backend.restore(stored, settings, key)
    return FastConformer(engine, settings, reason_of(bundle), bundle, labels)


def reopened(folder: str, options: Mapping[str, Any], digest: str) -> FastConformer:
    """A copy of a loaded model."""
    return loaded(*opened(folder, options, digest=digest))
