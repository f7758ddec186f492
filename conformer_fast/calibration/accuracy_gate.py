"""The accuracy gate: products go back to 16 bits, the most sensitive first, until 8 bits cost no more than is allowed.

With labels, the top-1 accuracy may fall by so many percentage points. Without them, at most that share of the images
may change its class, which the accuracy cannot fall by more than, and the scores must keep an SQNR of SQNR_FLOOR. A
model without heads is judged by the SQNR of its outputs alone.

A product's sensitivity is the error of the outputs when it is the only one in 8 bits. It is measured once, on about
SENSITIVITY_IMAGES, and only if the gate does not hold at once. Everything is judged by the model simulated in PyTorch,
whose products in 16 bits are exact here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, shown
from ..inference.network import InferenceConformer
from ..inference.quantization import Quantization, product_of
from ..model.distance import sqnr_db, top1_agreement
from ..model.outputs import SUM
from ..progress import Bar
from ..tables import Column, Table
from .observer import Observer, spread

SQNR_FLOOR = 32.0  # dB, 2.5 % of the scores; at 30 to 31.5 dB 2 of 359 held-out digits changed their class
SENSITIVITY_IMAGES = 32
RESTORED = Table(Column("product"), Column("error", ".2e"), Column("work", ".2%"))


@dataclass(frozen=True)
class Judgment:
    """top1: share of the images that get their label, None without labels. agreement: share that gets the class of the
    fp32 model, None without heads. sqnr_db: of the summed scores, or of all outputs without heads."""

    top1: float | None
    agreement: float | None
    sqnr_db: float

    def __str__(self) -> str:
        shares = {"top-1": self.top1, "agreement with fp32": self.agreement}
        parts = [f"{name} {share:.2%}" for name, share in shares.items() if share is not None]
        return ", ".join([*parts, f"SQNR {self.sqnr_db:.1f} dB"])


@dataclass(frozen=True)
class Restored:
    """A product that went back to 16 bits. error: of the outputs, relative, with it alone in 8 bits. multiply_adds: its
    share of those of all products that were in 8 bits."""

    product: str
    error: float
    multiply_adds: float


@dataclass(frozen=True)
class GateReport:
    """reference_top1: of the fp32 model, None without labels. restored: in the order in which they went back.
    seconds: a batch's, before and after, None if it was not timed. sensitivities: of every product, the largest first;
    empty if the gate held at once."""

    precision: str
    images: int
    max_drop: float
    reference_top1: float | None
    before: Judgment
    after: Judgment
    holds: bool
    restored: tuple[Restored, ...]
    seconds: tuple[float, float] | None
    sensitivities: dict[str, float]

    @property
    def multiply_adds(self) -> float:
        """The share of those of all products that were in 8 bits which is back in 16."""
        return sum(product.multiply_adds for product in self.restored)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; an SQNR without any error is None."""
        values = asdict(self)
        for judgment in (values["before"], values["after"]):
            judgment["sqnr_db"] = judgment["sqnr_db"] if math.isfinite(judgment["sqnr_db"]) else None
        return {**values, "multiply_adds": self.multiply_adds}

    def __str__(self) -> str:
        reference = "" if self.reference_top1 is None else f", fp32 has top-1 {self.reference_top1:.2%}"
        lines = [
            f"{self.precision}, {self.images} images, at most {self.max_drop:g} points down{reference}",
            f"all products in 8 bits: {self.before}",
        ]
        if self.restored:
            rows = ((product.product, product.error, product.multiply_adds) for product in self.restored)
            price = f"{self.multiply_adds:.1%} of the 8-bit multiply-adds are in 16 bits, time not measured"
            if self.seconds:
                before, after = self.seconds
                price = f"{after / before - 1:+.1%} time a batch, measured ({before * 1e3:.1f} -> {after * 1e3:.1f} ms)"
            lines += [
                f"{len(self.restored)} of {len(self.sensitivities)} products back in 16 bits: {self.after}",
                *RESTORED.lines(rows),
                f"price: {price}",
            ]
        return "\n".join([*lines, "the gate holds" if self.holds else "the gate does NOT hold"])


def check_max_drop(value: Any) -> None:
    """Raises ArgumentError unless it is a number of percentage points, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ArgumentError(f"max_drop must be percentage points, 0 or more, got {shown(repr(value))}")


def gate(
    model: InferenceConformer,
    quantization: Quantization,
    images: Sequence[Tensor],
    *,
    max_drop: float,
    labels: Sequence[int] | None = None,
    time: Callable[[Quantization, Quantization], tuple[float, float]] | None = None,
) -> tuple[Quantization, GateReport]:
    """The quantization with as few products back in 16 bits, by sensitivity, as the gate needs; and what was measured.

    model:    in fp32
    images:   batches (B, in_channels, H, W), normalized, on the model's device; read again for each judgment
    max_drop: percentage points
    labels:   the class of each image, in order
    time:     the seconds that a batch takes the engines of two quantizations. Default: the price is only estimated.

    Raises ArgumentError when max_drop is negative, there are no images, or the labels are not one class for each.
    """
    check_max_drop(max_drop)
    judge = _Judge(model, images, labels)
    before = after = judge(quantization)
    found, restored, errors = quantization, [], {}
    if not judge.holds(after, max_drop):
        errors = sensitivities(judge.model, quantization, spread(images, SENSITIVITY_IMAGES))
        work = _multiply_adds(judge.model, next(filter(len, images)), errors)
        for product, error in errors.items():
            restored.append(Restored(product, error, work[product]))
            found = _without(found, product)
            after = judge(found)
            if judge.holds(after, max_drop):
                break
    report = GateReport(
        precision=quantization.precision,
        images=judge.count,
        max_drop=max_drop,
        reference_top1=judge.reference_top1,
        before=before,
        after=after,
        holds=judge.holds(after, max_drop),
        restored=tuple(restored),
        seconds=time(quantization, found) if time and restored else None,
        sensitivities=errors,
    )
    return replace(found, origin={**quantization.origin, "gate": report.to_dict()}), report


def sensitivities(model: InferenceConformer, quantization: Quantization, batches: Iterable[Tensor]) -> dict[str, float]:
    """The relative error of the model's outputs when one product alone is in 8 bits, for each; the largest first.

    It is ||outputs - exact|| / ||exact|| over all batches and outputs; a product comes with what it adds.
    """
    taken = list(batches)
    exact = [_outputs(model, images) for images in taken]
    power = sum(_power(value) for values in exact for value in values)
    products = [name for name in model.quantizable if name in quantization.ranges]
    errors = {}
    with Bar("sensitivity", len(products), "product") as bar:
        for product in products:
            alone = model.quantized(_only(quantization, product))
            noise = 0.0
            for images, expected in zip(taken, exact, strict=True):
                found = _outputs(alone, images)
                noise += sum(_power(mine - true) for mine, true in zip(found, expected, strict=True))
            errors[product] = _error(noise, power)
            bar.update()
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


class _Judge:
    """Compares what runs with the fp32 model on the same images, whose outputs it keeps.

    model: the given one with the outputs that are judged, the summed scores if it has heads
    """

    def __init__(self, model: InferenceConformer, images: Sequence[Tensor], labels: Sequence[int] | None) -> None:
        self.classifies = SUM in model.output_names
        self.model = model.with_outputs((SUM,)) if self.classifies else model
        self._images = images
        self._exact = [_outputs(self.model, batch) for batch in images]
        self.count = sum(len(outputs[0]) for outputs in self._exact)
        if not self.count:
            raise ArgumentError("the gate got no images; give some that are like those the model will see")
        self._labels = (
            None if labels is None else _labels(labels, self.count, self.classifies, model.config.num_classes)
        )
        self.reference_top1 = None if self._labels is None else top1_agreement(self._scores(self._exact), self._labels)

    def __call__(self, quantization: Quantization) -> Judgment:
        quantized = self.model.quantized(quantization)
        noise, found = 0.0, []
        with Bar("judging", len(self._images), "batch") as bar:
            for images, exact in zip(self._images, self._exact, strict=True):
                outputs = _outputs(quantized, images)
                noise += sum(_power(mine - true) for mine, true in zip(outputs, exact, strict=True))
                found.append(outputs)
                bar.update()
        power = sum(_power(value) for values in self._exact for value in values)
        ratio = sqnr_db(_error(noise, power))
        if not self.classifies:
            return Judgment(None, None, ratio)
        scores = self._scores(found)
        top1 = None if self._labels is None else top1_agreement(scores, self._labels)
        return Judgment(top1, top1_agreement(scores, self._scores(self._exact)), ratio)

    def holds(self, judgment: Judgment, max_drop: float) -> bool:
        allowed = max_drop / 100 + 1e-9  # shares are ratios of integers
        if judgment.top1 is not None and self.reference_top1 is not None:
            return self.reference_top1 - judgment.top1 <= allowed
        agrees = judgment.agreement is None or 1 - judgment.agreement <= allowed
        return agrees and judgment.sqnr_db >= SQNR_FLOOR

    @staticmethod
    def _scores(outputs: Sequence[Sequence[Tensor]]) -> Tensor:
        return torch.cat([scores for (scores,) in outputs]).cpu()


def _labels(labels: Sequence[int], images: int, classifies: bool, classes: int) -> Tensor:
    values = labels.cpu() if isinstance(labels, Tensor) else torch.tensor(labels)  # as_tensor warns of read-only memory
    if not classifies:
        raise ArgumentError("labels need a model with heads; this one returns features")
    if values.shape != (images,):
        raise ArgumentError(f"the gate got {len(values)} labels for {images} images; give one for each, in order")
    if values.is_floating_point() or not ((values >= 0) & (values < classes)).all():
        raise ArgumentError(
            f"labels must be classes 0 to {classes - 1} of the model, got {values.min()} to {values.max()}"
        )
    return values


def _without(quantization: Quantization, product: str) -> Quantization:
    kept = {name: range for name, range in quantization.ranges.items() if product_of(name) != product}
    return replace(quantization, ranges=kept)


def _only(quantization: Quantization, product: str) -> Quantization:
    kept = {name: range for name, range in quantization.ranges.items() if product_of(name) == product}
    return replace(quantization, ranges=kept)


def _multiply_adds(model: InferenceConformer, images: Tensor, products: Iterable[str]) -> dict[str, float]:
    """Each product's share of the multiply-adds of all of these."""
    observer = Observer(model)
    observer.observe(images[:1], lambda name, value: None)
    done = {name: observer.multiply_adds.get(name, 0) for name in products}
    return {name: count / sum(done.values()) for name, count in done.items()}


def _outputs(model: InferenceConformer, images: Tensor) -> list[Tensor]:
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return [value.float() for value in model(images)]


def _error(noise: float, power: float) -> float:
    """A relative error from sums of squares over batches: `relative_error` would need all of them in memory."""
    return math.sqrt(noise / power) if power else math.inf if noise else 0.0


def _power(value: Tensor) -> float:
    return value.double().square().sum().item()
