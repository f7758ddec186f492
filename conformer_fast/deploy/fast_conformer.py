"""FastConformer: a compiled or loaded model, and all that can be done with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..bundles.folder import Bundle, bundle_path, read_bundle, write_bundle
from ..bundles.manifest import Manifest
from ..checkpoints.adopt import Model, Source
from ..engines.base import Engine, Settings
from ..engines.module import EngineModule
from ..engines.registry import format_of, make
from ..errors import ArgumentError, BundleError, ConformerFastError, shown
from ..model.digest import weights_sha256
from ..model.outputs import LOGITS, SUM, check_outputs, names_of
from ..model.recipe import check_label_lines, class_labels, shown_labels
from ..model.reference import Conformer
from .save import call, check_labels, label_lines, on_device, save

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
            of = made_from.manifest, made_from.manifest.outputs, made_from.manifest.structure
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
        return self._made_from.manifest if isinstance(self._made_from, Bundle) else None

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

        openvino: the graph, and the engines of the sizes run so far; if none was, of the usual size, which is built
        first. On another CPU the graph is built anew. triton: the weights as the kernels read them, and the tuned tiles
        of this GPU. tensorrt: the engine, for the GPUs it was built for. A loaded model's bundle is copied.

        A bundle that is there already is replaced. Raises BackendError for the backend "reference", which has nothing
        to save; BundleError when the folder holds anything but a bundle or cannot be written, or when the model returns
        a class that cannot be restored.
        """
        path = bundle_path(folder)
        if isinstance(self._made_from, Bundle):
            return _copied(self._made_from, path, labels, key)
        again = call("conformer_fast.compile(model", self.settings) + f").save({path.absolute().name!r})"
        return save(path, self._made_from, self.settings, self._engine, rebuild_with=again, labels=labels, key=key)

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._made_from, Source):
            return compiled, (self._made_from, self.settings, self.reason)
        bundle, backend = self._made_from, self.settings.backend
        options = {option.name: getattr(backend, option.name) for option in fields(cast(Any, backend))}
        return loaded, (str(bundle.folder), options, None, bundle.digest)


def compiled(source: Source, settings: Settings, reason: str) -> FastConformer:
    """The model of these settings, on their device."""
    reference = source.reference
    with on_device(settings.device):
        engine = settings.backend.engine(reference, settings, source.outputs)
    labels = class_labels(reference.recipe, reference.config) if {*LOGITS, SUM} & set(source.outputs) else ()
    return FastConformer(engine, settings, reason, source, labels)


def loaded(
    folder: str | os.PathLike[str], options: Mapping[str, Any], key: bytes | None = None, digest: str | None = None
) -> FastConformer:
    """`load`. digest: of the only bundle that will do."""
    bundle = read_bundle(folder, format_of, key)
    if digest not in (None, bundle.digest):
        raise BundleError(f"{bundle.folder} holds another bundle than when the model was copied; load it anew")
    manifest = bundle.manifest
    chosen = make(manifest.backend, options)
    try:
        backend = chosen.for_bundle(manifest)
    except ArgumentError as error:
        raise BundleError(f"{bundle.folder} has an engine that cannot be: {error}; make the bundle again") from error
    settings = Settings(backend, manifest.precision, backend.fits(manifest))
    labels = _labels(bundle)
    engine = backend.restore(bundle, settings, key)
    return FastConformer(
        engine, settings, f"{backend.name} {manifest.precision}: from {bundle.folder.name}", bundle, labels
    )


def _copied(bundle: Bundle, folder: str | os.PathLike[str], labels: Sequence[str] | None, key: bytes | None) -> Path:
    """Writes a verified bundle's files to another folder, with other labels if they are given."""
    manifest = bundle.manifest
    files = {name: bundle.read(name) for name in manifest.files}
    if labels is not None:
        check_labels(labels, manifest.config)
        if manifest.labels is None:
            raise BundleError(f"{bundle.folder} has no scores that could have labels")
        files[manifest.labels] = label_lines(labels)
    return write_bundle(folder, replace(manifest, files={}), files, key)


def _labels(bundle: Bundle) -> tuple[str, ...]:
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
