"""evaluate_detector(): average precision of a detector on COCO's annotations, beside its reference in the same pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..datasets.coco import CocoFile, CocoPicture, read_coco
from ..engines.base import Settings
from ..engines.reference import Reference
from ..errors import ArgumentError, ArgumentTypeError, ImageError, a_path, truth
from ..model.detector.class_names import detector_labels, warn_of_assumptions
from ..model.detector.config import DetectorConfig
from ..model.detector.detect import Detections, ImageSize, on_cpu
from ..model.detector.reference import Detector
from ..model.digest import weights_sha256
from ..model.forked import before_computing
from ..model.precision import DTYPES, tf32_as_asked
from ..model.recipe import Recipe
from ..preprocessing.cpu import load_image
from ..preprocessing.detection import fit_pictures
from ..progress import Bar
from ..version import __version__
from .average_precision import KINDS, agreement, precision
from .detector_report import DetectorEvaluation
from .found import NOTHING, Found, found_from, found_in, pycocotools
from .kept import Kept
from .published import detector_published_for

Run = Callable[[Tensor, Sequence[ImageSize]], list[Detections]]


class Compiled(Protocol):
    """What `compile` and `load` return for a detector."""

    settings: Settings
    reason: str
    recipe: Recipe
    labels: tuple[str, ...]

    @property
    def config(self) -> DetectorConfig: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def reference(self) -> Detector | None: ...

    def __call__(self, images: Tensor, sizes: Sequence[ImageSize] | None = None) -> list[Detections]: ...


def evaluate_detector(
    detector: Compiled | Detector,
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    reference: Detector | None = None,
    limit: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DetectorEvaluation:
    """Runs a detector on the pictures of a COCO annotation file, one at a time as `fit_pictures` makes them, and judges
    its boxes, and its masks if it has any, by pycocotools.

    detector:    compiled or loaded, or a Detector
    annotations: a file such as instances_val2017.json; its categories are the detector's classes by their names, if
                 these are the same, else in the order of their ids
    images:      the folder in which its pictures have the names that it says
    reference:   also run the Detector that it was made from on the same pictures: `detector.reference`
    limit:       evaluate at most so many pictures, evenly from all
    resume:      a file that keeps what was found, picture by picture. If it is there, the rest is done.
    progress:    show a bar with the time left where the error output is a terminal, elsewhere a line every 30 seconds

    In a damaged picture, or one of another size than the file says, nothing is found; the result lists it.

    Raises DatasetError for a file that is no annotation file or whose pictures are not there, or a `resume` file of
    another evaluation; ImageError when none of the pictures could be used; ArgumentError for other values that do not
    fit; BackendError without pycocotools; OSError when `resume` cannot be written.
    """
    before_computing()
    truth("progress", progress)
    resume = None if resume is None else a_path("the file to resume from", resume)
    pycocotools()
    own = _of(detector)
    runs = {"compiled": _run_of(detector)}
    if reference is not None:
        runs["reference"] = _run_of(_same(reference, own))
    config = own.config
    coco = read_coco(annotations, images, outlines=config.masks, limit=limit)
    classes, classes_by = _classes(coco, own.labels)
    warn_of_assumptions(own.recipe, config)
    fields = {"annotations": coco.sha256, "pictures": len(coco.pictures), "reference": reference is not None}
    kept = Kept(resume, {**fields, **_fields(own)}, partial(_found_from, coco, config, len(runs)))
    before = len(kept.found)
    damaged: dict[str, str] = {}
    with kept, Bar("evaluating", len(coco.pictures), "image", done=before, shown=progress) as bar:
        for index, picture in enumerate(coco.pictures):
            if index in kept.found:
                continue
            try:
                batch, sizes = fit_pictures([_loaded(picture)], recipe=own.recipe)
            except ImageError as error:
                damaged[picture.name] = str(error)
            else:
                kept.add(index, [found_in(run(batch, sizes)[0]) for run in runs.values()])
            bar.update()
    if not kept.found:
        raise ImageError(
            f"none of the {len(coco.pictures)} pictures could be used; the first: {next(iter(damaged.values()))}"
        )
    nothing = [NOTHING] * len(runs)
    each = [kept.found.get(index, nothing) for index in range(len(coco.pictures))]
    found = {name: [of_picture[place] for of_picture in each] for place, name in enumerate(runs)}
    objects = [{**one, "category_id": classes[one["category_id"]]} for one in coco.annotations]
    kinds = KINDS if config.masks else ("box",)
    precisions = {
        name: {kind: precision(kind, coco.pictures, objects, of_run) for kind in kinds}
        for name, of_run in found.items()
    }
    return DetectorEvaluation(
        annotations=coco.source,
        images=os.fspath(images),
        pictures=len(coco.pictures),
        objects=len(objects),
        damaged=damaged,
        backend=own.settings.backend.name,
        precision=own.settings.precision,
        device=own.settings.device,
        reason=own.reason,
        size=own.recipe.size,
        classes=classes_by,
        compiled=precisions["compiled"],
        reference=precisions.get("reference", {}),
        agreement=agreement(found["compiled"], found["reference"]) if reference is not None else {},
        published=tuple(detector_published_for(config)),
        images_run=len(kept.found) - before,
    )


class _Judged(NamedTuple):
    """Of what is evaluated: what it is, how it runs, why so, and hashes of what it was made from."""

    config: DetectorConfig
    recipe: Recipe
    labels: tuple[str, ...]
    settings: Settings
    reason: str
    identity: dict[str, Any]


def _of(detector: Compiled | Detector) -> _Judged:
    if isinstance(detector, Detector):
        weight = next(detector.parameters())
        name = next((name for name, dtype in DTYPES.items() if dtype == weight.dtype), str(weight.dtype))
        settings = Settings(Reference(), name, str(weight.device))
        reason = f"the reference itself, in {name} on {weight.device}"
        labels, identity = detector_labels(detector.recipe, detector.config), {"weights": weights_sha256(detector)}
        return _Judged(detector.config, detector.recipe, labels, settings, reason, identity)
    if not isinstance(getattr(detector, "config", None), DetectorConfig):
        raise ArgumentTypeError(
            f"evaluate_detector runs compiled detectors and Detectors, got a {type(detector).__name__}; evaluate runs "
            f"classifiers"
        )
    return _Judged(*(getattr(detector, name) for name in _Judged._fields))


def _same(reference: Detector, own: _Judged) -> Detector:
    """Raises ArgumentError unless the reference is that of the detector."""
    if not isinstance(reference, Detector):
        raise ArgumentTypeError(f"reference must be a Detector, got a {type(reference).__name__}; see .reference")
    if reference.config != own.config or weights_sha256(reference) != own.identity["weights"]:
        raise ArgumentError(
            "the reference is another detector, of other sizes or weights; give the one that this was made from"
        )
    return reference


def _run_of(detector: Compiled | Detector) -> Run:
    if not isinstance(detector, Detector):
        return lambda images, sizes: [*map(on_cpu, detector(images.to(detector.settings.device), sizes))]
    if any(part.training for part in detector.modules()):
        raise ArgumentError("the detector, or a part of it, is in training mode; call detector.eval() first")
    weight = next(detector.parameters())

    def run(images: Tensor, sizes: Sequence[ImageSize]) -> list[Detections]:
        with torch.inference_mode(), torch.autocast(weight.device.type, enabled=False), tf32_as_asked(weight.dtype):
            return detector(images.to(weight), sizes)

    return run


def _classes(coco: CocoFile, labels: Sequence[str]) -> tuple[list[int], str]:
    """The class of each category, and how it was found. Raises ArgumentError for other numbers of both."""
    names = coco.categories
    if len(names) != len(labels):
        raise ArgumentError(
            f"{coco.source} has {len(names)} categories, the detector {len(labels)} classes; give the annotations of "
            f"what it was trained for"
        )
    if sorted(names) == sorted(labels) and len(set(names)) == len(names):
        return [labels.index(name) for name in names], "their names"
    return [*range(len(names))], "the order of their ids"


def _fields(own: _Judged) -> dict[str, Any]:
    """What decides all that is found in a picture, as JSON values."""
    return {
        "conformer_fast": __version__,
        **own.identity,
        "backend": own.settings.backend.name,
        "precision": own.settings.precision,
        "device": own.settings.device,
        "size": own.recipe.size,
        "normalization": [list(values) for values in own.recipe.normalization],
        **asdict(own.config),
    }


def _found_from(coco: CocoFile, config: DetectorConfig, models: int, value: Any) -> tuple[int, list[Found]]:
    """A picture and what each of so many models found in it, from what was kept. Raises ValueError for what is none."""
    match value:
        case [int(index), list(each)] if 0 <= index < len(coco.pictures) and len(each) == models:
            size = [coco.pictures[index].height, coco.pictures[index].width] if config.masks else None
            return index, [found_from(one, config.num_classes, size) for one in each]
    raise ValueError("no picture")


def _loaded(picture: CocoPicture) -> Image.Image:
    """Raises ImageError for a damaged picture, or one that is not what was annotated."""
    image = load_image(picture.path)
    if image.size != (picture.width, picture.height):
        raise ImageError(
            f"{picture.path}: it has {image.width}x{image.height} pixels, the annotation file says "
            f"{picture.width}x{picture.height}; get the picture that was annotated"
        )
    return image
