"""How a model's products are best put in 8 bits, measured on images; engines and kernels all take their scales from it.

A pass over the images counts how often each magnitude occurs in what each product reads (histograms.py), after layer
norms with outlying channels have been smoothed (smoothquant.py). The ranges come from these counts, for either
precision, and a gate may then put products back to 16 bits (accuracy_gate.py). Only scalars are kept of the images, so
their number is limited by time alone; 128 to 1024 are usual.

It is our own because libraries that do this (NNCF, ModelOpt, torchao) return a quantized model of one framework, and
here every engine takes the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checkpoints.adopt import Model, Source, adopt
from ..datasets.batches import Batches, DatasetBatches, Pictures, images_in
from ..datasets.dataset import PictureSet
from ..engines.base import Backend, Settings
from ..engines.registry import choose
from ..engines.timing import time_in_turn
from ..errors import ArgumentError, ArgumentTypeError, a_function, a_path, several, shown, truth
from ..inference.lower import lower
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization
from ..model.config import ConformerConfig
from ..model.detector.reference import Detector
from ..model.digest import digest_of, weights_sha256
from ..model.precision import FORMATS
from ..model.recipe import USUAL, Recipe, input_side
from ..storage.hashed import HashedFile
from ..storage.sources import sources_sha256
from ..version import __version__
from .accuracy_gate import GateReport, check_max_drop, gate
from .calibrate_detector import PRECISION, calibrate_detector
from .counts import Counts, counted
from .image_facts import doubts
from .smoothquant import Factors, smoothing_factors

ROUNDS = 9  # in which engines are timed
FOLDER_LIMIT = 512  # pictures of a folder that is given by its path

Images = (  # batches, also with labels; a set of pictures; a folder
    Iterable[Tensor] | Iterable[Sequence[Any]] | PictureSet | str | os.PathLike[str]
)


def calibrate(
    model: Model | InferenceConformer | Detector,
    images: Images,
    *,
    precision: str = "int8",
    smoothquant: bool = True,
    max_drop: float | None = None,
    labels: Sequence[int] | None = None,
    timed: str | Backend | None = None,
    cache: str | os.PathLike[str] | None = None,
    report: Callable[[GateReport], object] | None = None,
) -> Quantization:
    """How to quantize `model`: what `compile` and `build` take for an 8-bit precision, and `Quantization.save` writes.

    model:     what `compile` takes, or its inference model in fp32. It is not changed. For a detector there is "int8"
               alone, and neither a gate nor a cache; its images have sides of multiples of 32, and of a folder 64
               pictures are taken, as `fit_pictures` makes them.
    images:    batches of images (B, in_channels, H, W), normalized, like those that the model will see. A sequence is
               read batch by batch, again for each pass, so it may read from disk (`images_in`, `Batches`); anything
               else is kept in memory. Of (images, labels), as a DataLoader gives them, the images. A folder's path, or
               a set of pictures: 512 of them, of the usual size.
    precision: "int8" or "fp8", which leaves the stem and the first bottleneck in 16 bits (quantization.py)
    smoothquant: whether layer norms may hand large channels to their products' weights where that pays (smoothquant.py)
    max_drop:  percentage points of top-1 accuracy that 8 bits may cost on these images; the most sensitive products go
               back to 16 bits until it holds. None: all products stay in 8 bits. The gate's report is
               `origin["gate"]` of the result.
    labels:    the class of each image, in their order, for the gate; without them it asks for agreement with fp32
    timed:     the backend, or its name, that measures what going back to 16 bits costs: seconds a batch, before and
               after, of engines of `model`, which must not be an inference model
    cache:     a folder: what was counted is kept there, during the pass too. The same model and images go on from where
               they were interrupted, and without smoothing another precision needs no pass at all. Nothing is kept if
               this package's sources are missing, or were changed since they were imported.
    report:    is given the gate's report, as `print` is

    Warns of images that are of one color, few or not normalized: of such ranges 8 bits keep little.

    Raises ArgumentError when options do not fit together, there are no images, they do not fit the model, are
    normalized for another, or one of the values is not finite; ArgumentTypeError for images that are not floating
    point; BackendError when `timed` cannot run here in this precision.
    """
    truth("smoothquant", smoothquant)
    if isinstance(model, Detector):
        _check_detector(precision, max_drop=max_drop, labels=labels, timed=timed, cache=cache, report=report)
        quantization = calibrate_detector(model, cast(Any, images), smoothquant)
        warn_of(quantization)
        return quantization
    kept = None if cache is None else a_path("the cache", cache)
    _check_options(model, precision, max_drop, labels, timed, report)
    backend = None if timed is None else choose(timed, precision).backend
    source: Source | None = None
    recipe = USUAL
    if isinstance(model, InferenceConformer):
        network = model
    else:
        source = adopt(model)
        recipe = source.reference.recipe
        check_normalized_for(recipe, images)
        network = lower(source.reference)
    batches = _Checked(in_batches(images, network.config, recipe), network)
    folder = None if IMPORTED is None or _code_sha256() != IMPORTED else kept
    factors = _smoothing(network, batches, precision, folder) if smoothquant else {}
    counts = _statistics(network.smoothed(factors), batches, folder)
    origin = {"conformer_fast": __version__, "images": counts.images, "pictures": counts.pictures.facts}
    if source:
        origin["weights"] = weights_sha256(source.reference)
    quantization = Quantization(precision, counts.ranges(precision), factors, origin)
    warn_of(quantization)
    if max_drop is not None:
        time = partial(_time, source, backend, batches) if source and backend else None
        quantization, found = gate(network, quantization, batches, max_drop=max_drop, labels=labels, time=time)
        if report:
            report(found)
    return quantization


def warn_of(quantization: Quantization, reference: nn.Module | None = None) -> None:
    """Says, in one line, what in its origin speaks against a quantization, for this model if one is given."""
    found = list(doubts(quantization.origin))
    made_for = quantization.origin.get("weights")
    if reference is not None and made_for is not None and made_for != weights_sha256(reference):
        found.append("it was made for other weights")
    if found:
        warnings.warn(
            f"the {quantization.precision} quantization may be far off: {'; '.join(found)}. Calibrate on pictures like "
            f"those that the model will see, and look at verify()",
            stacklevel=3,
        )


def in_batches(images: Images, config: ConformerConfig, recipe: Recipe) -> Sequence[Tensor]:
    """Pictures of a folder or a set, as the model's recipe says; a sequence as it is, which may read from disk; what
    else can be gone through as a list. Of (images, labels) the images.

    Raises ArgumentTypeError for anything else, and what `images_in` does.
    """
    if isinstance(images, str | os.PathLike):
        return images_in(images, input_side(recipe, config), FOLDER_LIMIT, recipe=recipe)
    if isinstance(images, PictureSet):
        return DatasetBatches(images.evenly(FOLDER_LIMIT), input_side(recipe, config), recipe=recipe)
    if isinstance(images, Sequence) and not isinstance(images, list | tuple):
        return cast(Sequence[Tensor], images)
    if isinstance(images, Tensor) and images.ndim <= 4:
        raise ArgumentTypeError("images for quantization must be a list of batches, such as images.split(32), got one")
    return [
        batch[0] if isinstance(batch, list | tuple) and batch else batch
        for batch in several("images for quantization", images)
    ]


def check_normalized_for(recipe: Recipe, images: Images) -> None:
    """Raises ArgumentError for pictures that are read with another normalization than the model's, if that is known."""
    if isinstance(images, Pictures | DatasetBatches) and recipe.mean is not None:
        found, wanted = images.recipe.normalization, recipe.normalization
        if found != wanted:
            raise ArgumentError(
                f"the pictures are read with mean and std {found}, the model was trained with {wanted}; give "
                f"recipe=model.recipe to what reads them"
            )


class _Checked(Batches):
    """The given batches, checked and on the model's device when they are read."""

    def __init__(self, given: Sequence[Tensor], model: InferenceConformer) -> None:
        self._given, self._model = given, model

    def __len__(self) -> int:
        return len(self._given)

    def read(self, index: int) -> Tensor:
        return _checked(self._given[index], self._model)

    @cached_property
    def identity(self) -> str:
        """Of the images and how they are batched."""
        if isinstance(self._given, Batches):
            return self._given.identity
        digests = (digest_of({"": images}) for images in self)
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _check_options(
    model: Model | InferenceConformer,
    precision: str,
    max_drop: float | None,
    labels: Sequence[int] | None,
    timed: str | Backend | None,
    report: Callable[[GateReport], object] | None,
) -> None:
    if not isinstance(precision, str) or precision not in FORMATS:
        kind = ArgumentError if isinstance(precision, str) else ArgumentTypeError
        raise kind(f"calibration is for {' and '.join(FORMATS)}, got precision {shown(repr(precision))}")
    if max_drop is not None:
        check_max_drop(max_drop)
        if report is not None:
            a_function("report", report)
    else:
        for name, given in {"labels": labels, "timed": timed, "report": report}.items():
            if given is not None:
                raise ArgumentError(f"{name}: for the gate; give max_drop too, such as 0.5 percentage points")
    if timed is not None and isinstance(model, InferenceConformer):
        raise ArgumentError("timed makes engines of the model itself: give that, not its inference model")


def _check_detector(precision: str, **others: Any) -> None:
    if precision != PRECISION:
        raise ArgumentError(f"a detector's products are put in {PRECISION}, got precision {shown(repr(precision))}")
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ArgumentError(f"a detector is calibrated without {', '.join(given)}; leave them out")


def _statistics(model: InferenceConformer, batches: _Checked, cache: Path | None) -> Counts:
    if cache is None:
        return counted(model, batches)
    return counted(model, batches, HashedFile(cache / f"{_key(model, batches, 'histograms')}.safetensors"))


def _smoothing(model: InferenceConformer, batches: _Checked, precision: str, cache: Path | None) -> Factors:
    """`smoothing_factors` of a share of the images, from the cache if it is there."""
    if cache is None:
        return smoothing_factors(model, batches, precision)
    file, again = HashedFile(cache / f"{_key(model, batches, precision)}.json"), "smoothing is measured again"
    content = file.read_or_warn(again)
    if content is not None:
        try:
            factors = {name: tuple(map(float, values)) for name, values in json.loads(content).items()}
            model.smoothed(factors)
            return factors
        except (ArgumentError, AttributeError, ValueError, TypeError, OverflowError, RecursionError) as error:
            warnings.warn(f"{file.path} holds no smoothing ({error!r:.100}); {again}", stacklevel=2)
    factors = smoothing_factors(model, batches, precision)
    file.write_or_warn("smoothing factors", json.dumps(factors).encode())
    return factors


def _key(model: InferenceConformer, batches: _Checked, what: str) -> str:
    """Names what is measured, of which weights and images, by which version of this code."""
    seen = list(model.outputs), list(model.quantizable)
    facts = [__version__, IMPORTED, what, digest_of(model.state_dict()), *seen, batches.identity]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _time(
    source: Source, backend: Backend, batches: _Checked, before: Quantization, after: Quantization
) -> tuple[float, float]:
    """The seconds that a batch takes an engine with each of two quantizations."""
    images = next(filter(len, batches))
    chosen = backend.for_images(images.shape).for_model(source.reference)
    device = chosen.torch_device()
    engines = {}
    for name, quantization in {"before": before, "after": after}.items():
        settings = Settings(chosen, quantization.precision, device, quantization)
        engines[name] = chosen.engine(source.reference, settings, source.outputs)
    with torch.inference_mode():
        timings = time_in_turn(engines, images.to(device), ROUNDS)
    return timings["before"].median, timings["after"].median


def _checked(images: Tensor, model: InferenceConformer) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ArgumentTypeError(
            f"images for quantization must be batches of normalized, floating point images, got {given}; "
            f"see conformer_fast.preprocess"
        )
    if images.ndim != 4:
        raise ArgumentError(
            f"images for quantization must be batches (B, {model.config.in_channels}, H, W), got shape "
            f"{tuple(images.shape)}"
        )
    return images.detach().to(model.stem.weight.device, torch.float32)


def _code_sha256() -> str | None:
    """Of the sources that decide what is counted, as they are on disk; None if there are none."""
    room = Path(__file__).parent
    return sources_sha256([room, room.parent / "inference", room.parent / "model"])


IMPORTED = _code_sha256()
