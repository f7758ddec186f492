"""FastDetector: a compiled detector, and all that can be done with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..bundles.folder import Bundle, bundle_path
from ..bundles.manifest import DetectorManifest
from ..engines.base import Backend, Settings
from ..engines.detector import EngineNetworks, engine_networks
from ..errors import ArgumentError, ArgumentTypeError, BundleError, CheckpointError, shown
from ..inference.detector import outputs_of
from ..model.blank import in_memory, outline_of
from ..model.detector.class_names import detector_labels, warn_of_assumptions
from ..model.detector.config import DetectorConfig
from ..model.detector.detect import Detections, ImageSize, Networks, detect
from ..model.detector.reference import Detector, checked_sizes
from ..model.digest import weights_sha256
from ..model.forked import before_computing
from ..model.recipe import Recipe
from .bundled import copied, labels_of, opened, reason_of, settings_of
from .save import call, on_device
from .save_detector import save_detector

if TYPE_CHECKING:
    from ..verification.verify import Report
    from .damaged import Damaged
    from .detect import DetectedPicture


class FastDetector:
    """What `compile` and `load` return for a detector. It is called as the Detector it was made from: images
    (B, 3, H, W) on `device`, normalized, and the sizes of the pictures in them -> a list of B Detections.

    networks: its engines, and what is between them; settings, reason: how it runs
    config:   what it is; recipe: what it was trained for; labels: the classes' names
    """

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        reason: str,
        made_from: Detector | Bundle,
        recipe: Recipe,
        labels: Sequence[str],
    ) -> None:
        self.networks = networks
        self.settings, self.reason = settings, reason
        self.recipe, self.labels = recipe, tuple(labels)
        self._made_from = made_from

    @property
    def device(self) -> torch.device:
        """Where its images must be, and its results are."""
        return torch.device(self.settings.device)

    @property
    def config(self) -> DetectorConfig:
        made_from = self._made_from
        return (
            made_from.config if isinstance(made_from, Detector) else cast(DetectorManifest, made_from.manifest).config
        )

    @property
    def reference(self) -> Detector | None:
        """The detector that defines what is correct here, in fp32 on the CPU; None if loaded."""
        return self._made_from if isinstance(self._made_from, Detector) else None

    @property
    def manifest(self) -> DetectorManifest | None:
        """What a loaded detector's bundle says of itself; None if compiled."""
        return None if isinstance(self._made_from, Detector) else cast(DetectorManifest, self._made_from.manifest)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its results beside its settings, as JSON values: hashes of what it was made from."""
        if isinstance(self._made_from, Detector):
            quantization = self.settings.quantization
            weights = weights_sha256(self._made_from)
            return {"weights": weights, "quantization": quantization and quantization.digest}
        manifest = self._made_from.manifest
        files = {name: stored.sha256 for name, stored in sorted(manifest.files.items())}
        return {"weights": manifest.sha256["weights"], "bundle": files}

    def __call__(self, images: Tensor, sizes: Sequence[ImageSize] | None = None) -> list[Detections]:
        """sizes: default: each image is a picture of its own size.

        Raises ArgumentError for images that are not (B, 3, H, W) of multiples of 32, hold NaN or are on another device,
        and for sizes that do not fit them.
        """
        before_computing()
        found = checked_sizes(images, sizes)
        if images.device != self.device:
            raise ArgumentError(f"this detector is compiled for {self.device}, the images are on {images.device}")
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return detect(self.networks, self.config, images.detach().float(), found)

    def predict(self, paths: Sequence[str | os.PathLike[str]]) -> Iterator[DetectedPicture | Damaged]:
        """What is in picture files, one after another; of one that cannot be used, what is wrong with it.

        Warns, in one line, of what the weights do not say and is assumed.
        """
        from .detect import detect_files

        warn_of_assumptions(self.recipe, self.config)
        return detect_files(self, paths)

    def verify(self, images: Tensor, reference: Detector | None = None) -> Report:
        """Compares each network with the reference in float64, on these images; prints the report and returns it.

        images:    (B, 3, H, W) as it is called with
        reference: the Detector that it was made from; a compiled one has its own

        The heads are given what the reference's networks before them find, so each is judged by itself.

        Raises ArgumentError without a reference, or if it is another detector than the one that this was made from.
        """
        from ..verification.verify_detector import verify_detector

        given = self.reference if reference is None else self.reference_of(reference)
        if given is None:
            raise ArgumentError("verify: a loaded detector has no reference; give the Detector that it was made from")
        report = verify_detector(self.networks, self.settings, images, given)
        print(report)
        return report

    def reference_of(self, detector: Detector) -> Detector:
        """Our own copy of the Detector that this was made from. Raises ArgumentError for another one."""
        if not isinstance(detector, Detector):
            raise ArgumentTypeError(f"the reference must be a Detector, got {shown(repr(detector))}")
        copy = own_copy(detector)
        if copy.config != self.config or weights_sha256(copy) != self.identity["weights"]:
            raise ArgumentError(
                "the reference is another detector, of other sizes or weights; give the one that this was made from"
            )
        return copy

    def save(
        self, folder: str | os.PathLike[str], *, labels: Sequence[str] | None = None, key: bytes | None = None
    ) -> Path:
        """Writes a bundle, which `conformer_fast.load` runs without the Detector. Returns its folder.

        labels: the classes' names, in order; default: this detector's
        key:    signs the bundle, as in FastConformer.save

        openvino: the graphs of its networks, and the engines of the sizes run so far; run a picture of each usual size
        before. A loaded detector's bundle is copied. Raises as FastConformer.save.
        """
        path = bundle_path(folder)
        if not isinstance(self._made_from, Detector):
            return copied(self._made_from, path, labels, key)
        again = call("conformer_fast.compile(detector", self.settings) + f").save({path.absolute().name!r})"
        return save_detector(
            path,
            self._made_from,
            self.settings,
            self.networks,
            rebuild_with=again,
            labels=self.labels if labels is None else labels,
            key=key,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles of a compiled detector carry the reference, and make the engines again; those of a loaded
        one load the folder again, and refuse another bundle in its place. They carry no key."""
        if isinstance(self._made_from, Detector):
            return compiled_detector, (self._made_from, self.settings, self.reason)
        backend = self.settings.backend
        options = {option.name: getattr(backend, option.name) for option in fields(cast(Any, backend))}
        return reopened_detector, (str(self._made_from.folder), options, self._made_from.digest)

    def __repr__(self) -> str:
        return f"FastDetector({self.reason})"


def compiled_detector(reference: Detector, settings: Settings, reason: str) -> FastDetector:
    """The detector of these settings. It is the reference's own copy that it keeps."""
    labels = detector_labels(reference.recipe, reference.config)
    with on_device(settings.device):
        networks = settings.backend.whole(reference) or engine_networks(reference, settings)
    return FastDetector(networks, settings, reason, reference, reference.recipe, labels)


def loaded_detector(bundle: Bundle, backend: Backend, key: bytes | None = None) -> FastDetector:
    """The detector in a verified bundle."""
    manifest = cast(DetectorManifest, bundle.manifest)
    own = {name: (stored, settings_of(stored, backend)) for name, stored in bundle.engines().items()}
    wrong = [name for name, network in manifest.networks.items() if network.outputs != outputs_of(name)]
    if wrong:
        raise BundleError(f"{bundle.folder} has other outputs of its network {wrong[0]}; make the bundle again")
    labels = labels_of(bundle)
    engines = {name: settings.backend.restore(stored, settings, key) for name, (stored, settings) in own.items()}
    settings = replace(own["proposer"][1], backend=backend)
    networks = EngineNetworks(engines, manifest.config, backend.operators(settings.device))
    return FastDetector(networks, settings, reason_of(bundle), bundle, replace(manifest.recipe, labels=labels), labels)


def reopened_detector(folder: str, options: Mapping[str, Any], digest: str) -> FastDetector:
    """A copy of a loaded detector."""
    return loaded_detector(*opened(folder, options, digest=digest))


def own_copy(detector: Detector) -> Detector:
    """In fp32 on the CPU, so that what becomes of `detector` changes nothing. Raises ArgumentError in training mode."""
    if any(part.training for part in detector.modules()):
        raise ArgumentError("the detector, or a part of it, is in training mode; call detector.eval() first")
    if any(tensor.is_meta for tensor in detector.state_dict().values()):
        raise CheckpointError("the detector is on the meta device, without values; load its weights first")
    state: dict[str, Any] = {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
    outline = outline_of(lambda: Detector(detector.config)).to(torch.float32)  # whatever PyTorch's defaults
    copy = in_memory(outline, torch.device("cpu")).eval().requires_grad_(False)
    copy.load_state_dict(state)
    copy.recipe = detector.recipe
    return copy
