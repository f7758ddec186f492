"""Where each branch looks in a picture, as maps for drawing over it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from ..deploy.explain import explain
from ..deploy.fast_conformer import FastConformer
from ..preprocessing.cpu import Cut, cut_of, load_image, preprocess
from .reading import RequestError

STRIDE = 32  # pixels from one place of the convolution branch's last map to the next, the first is at the edge
CELL = 16  # pixels of a place in the maps that are drawn


@dataclass(frozen=True)
class HeatMaps:
    """classified: index and label of the class. crop: the part of the picture that the model reads, in shares of its
    width and height. maps: of each branch, rows of values over the crop."""

    classified: dict[str, Any]
    crop: dict[str, float]
    maps: dict[str, list[list[float]]]


class Explainer:
    """One picture at a time: the reference computes it with all threads that PyTorch has.

    side:       of the model's input, in pixels
    megapixels: of a picture, at most
    """

    def __init__(self, model: FastConformer, side: int, megapixels: float) -> None:
        self._model, self._side, self._megapixels = model, side, megapixels
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explaining")

    async def explain(self, data: bytes, index: int | None) -> HeatMaps:
        """index: a class; None: the likeliest. Raises ImageError for what is no picture, RequestError for a class that
        the model does not have, and where there is no reference."""
        if self._model.reference is None:
            raise RequestError(
                "maps are computed by the model's reference, which a bundle does not hold; serve --model and --weights",
                501,
            )
        if index is not None and index >= self._model.config.num_classes:
            raise RequestError(f"class must be less than {self._model.config.num_classes}, got {index}", 422)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._explained, data, index)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _explained(self, data: bytes, index: int | None) -> HeatMaps:
        image = load_image(BytesIO(data), most_pixels=self._megapixels * 1e6)
        images = preprocess(image, self._side, recipe=self._model.recipe)[None]
        found = explain(self._model, images, index)
        (chosen,) = found.classes
        maps = {"conv": on_cells(found.conv[0], self._side), "trans": found.trans[0]}
        return HeatMaps(
            {"index": chosen, "label": self._model.labels[chosen]},
            crop_of(cut_of(image, self._side), self._side),
            {name: values.tolist() for name, values in maps.items()},
        )


def crop_of(cut: Cut, side: int) -> dict[str, float]:
    """The window, in shares of the picture."""
    return {
        "left": cut.left / cut.width,
        "top": cut.top / cut.height,
        "width": side / cut.width,
        "height": side / cut.height,
    }


def on_cells(values: Tensor, side: int) -> Tensor:
    """A map whose places are STRIDE pixels apart from the image's edge on -> one value for each CELL x CELL pixels."""
    centers = (torch.arange(side // CELL) + 0.5) * CELL / STRIDE
    for _ in range(2):  # rows, then columns
        at = centers.clamp(max=len(values) - 1)
        low = at.long().clamp(max=max(0, len(values) - 2))
        high = (low + 1).clamp(max=len(values) - 1)
        values = torch.lerp(values[low], values[high], (at - low)[:, None]).T
    return values
