"""From the bytes of pictures to their likeliest classes: decoded in a pool, run in batches of all clients."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

from torch import Tensor

from ..deploy.fast_conformer import FastConformer
from ..deploy.predict import Guess, check_model, summed, top_classes
from ..model.outputs import LOGITS
from ..preprocessing.cpu import load_image, preprocess
from .batcher import Answer, Batcher

HEADS = {LOGITS[0]: "conv", LOGITS[1]: "trans"}  # as answers name them


@dataclass(frozen=True)
class Classified:
    """top: the likeliest classes by both heads together; heads: by each alone, where the model returns them. batch:
    pictures that ran together. milliseconds: of "decode", "queue" and "engine"."""

    top: tuple[Guess, ...]
    heads: dict[str, tuple[Guess, ...]]
    batch: int
    milliseconds: dict[str, float]


class Classifier:
    """model:      compiled or loaded
    side:       of its input, in pixels
    batcher:    of its `run`
    decoders:   pictures that are decoded and resized at a time
    megapixels: of a picture, at most
    """

    def __init__(self, model: FastConformer, side: int, batcher: Batcher, decoders: int, megapixels: float) -> None:
        check_model(model)
        self._model, self.side, self._batcher, self._megapixels = model, side, batcher, megapixels
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="decoding")

    async def classify(self, data: bytes, topk: int) -> Classified:
        """Raises ImageError for what is no picture, ArgumentError for scores that are not finite, StoppingError. A task
        that is cancelled gives its place up."""
        start = time.monotonic()
        image = await asyncio.get_running_loop().run_in_executor(self._pool, self._decoded, data)
        decoded = time.monotonic() - start
        answer = await asyncio.wrap_future(self._batcher.submit(image))
        return self._classified(answer, decoded, topk)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _decoded(self, data: bytes) -> Tensor:
        image = load_image(BytesIO(data), most_pixels=self._megapixels * 1e6)
        return preprocess(image, self.side, recipe=self._model.recipe)[None]

    def _classified(self, answer: Answer, decoded: float, topk: int) -> Classified:
        values = dict(zip(self._model.outputs, answer.outputs, strict=True))
        labels = self._model.labels
        (top,) = top_classes(summed(self._model, answer.outputs), labels, topk)
        heads = {name: next(top_classes(values[head], labels, topk)) for head, name in HEADS.items() if head in values}
        seconds = {"decode": decoded, "queue": answer.queued, "engine": answer.ran}
        return Classified(top, heads, answer.batch, {name: round(1e3 * value, 3) for name, value in seconds.items()})
