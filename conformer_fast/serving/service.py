"""A model behind the addresses: what all requests share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from torch import Tensor

from ..deploy.fast_conformer import FastConformer
from ..deploy.predict import check_finite
from ..engines.module import check_images
from ..errors import ArgumentError, ImageError
from . import kserve
from .batcher import Answer, Batcher, StoppingError
from .classify import Classified, Classifier
from .heatmaps import Explainer, HeatMaps
from .metrics import Metrics
from .reading import Count, Limits, RequestError, body_of, pictures_of

ANSWERED = 20  # seconds, within which an engine answers that is well
EXPLANATIONS = 4  # that wait, the one that is computed included
PATIENCE = 5  # seconds for batches that nobody asks for any more when the server ends


@dataclass(frozen=True)
class Options:
    """max_batch:    pictures that run together
    max_delay_ms: that a free worker waits for more while another one runs
    queue:        pictures that may be in the server at a time; more are answered with 503
    workers:      batches that run at a time
    size:         side of the model's input in pixels; None: what the model is for
    decoders:     pictures that are decoded at a time
    token:        asked for as a bearer token, if given
    """

    max_batch: int = 32
    max_delay_ms: float = 5.0
    queue: int = 256
    workers: int = 1
    size: int | None = None
    decoders: int = os.cpu_count() or 1
    token: str | None = None
    limits: Limits = field(default_factory=Limits)


class Service:
    """A model and what stands before it. It has threads from `start` on, so that a process may be forked before."""

    def __init__(self, model: FastConformer, options: Options) -> None:
        self.model, self.options = model, options
        self.most = model.at_once(options.max_batch)
        self.batcher = Batcher(self._run, self.most, options.max_delay_ms / 1e3)
        side = model.input_side(options.size)
        self.classifier = Classifier(model, side, self.batcher, options.decoders, options.limits.megapixels)
        self.explainer = Explainer(model, side, options.limits.megapixels)
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.digest = hashlib.sha256(json.dumps(model.identity, sort_keys=True).encode()).hexdigest()
        self.shapes: dict[str, list[int]] = {}  # of outputs, -1 for what is free
        self.ready = False
        self._warm: Future[None] = Future()
        self._inside = self._bytes = self._explaining = 0

    async def start(self) -> None:
        """Runs a first batch, and raises what its engine raises; then warms the other sizes up beside what comes."""
        self.batcher.start(self.options.workers)
        first = await asyncio.wrap_future(self.batcher.submit(self._blank(1)))
        shapes = [[-1, *output.shape[1:]] for output in first.outputs]
        self.shapes = dict(zip(self.model.outputs, shapes, strict=True))
        threading.Thread(target=self._warm_up, name="warming up", daemon=True).start()

    async def stop(self) -> None:
        """Finishes what waits, unless that hangs."""
        await asyncio.to_thread(self.batcher.close, PATIENCE)
        self.classifier.close()
        self.explainer.close()

    async def check(self) -> None:
        """Runs a blank picture, once every size of batch has run; whether that worked is what `ready` says from now on.
        Raises what its engine raises, and TimeoutError if it does not answer."""
        try:
            await asyncio.shield(asyncio.wrap_future(self._warm))
            await asyncio.wait_for(asyncio.wrap_future(self.batcher.submit(self._blank(1))), ANSWERED)
        except Exception:  # whatever it is, who asks for readiness must know, and who checks gets it
            self.ready = False
            raise
        self.ready = True

    def _warm_up(self) -> None:
        """The first run of a batch's size takes longer. Engines take powers of two, other sizes in parts or padded."""
        try:
            for size in (*(2**power for power in range(1, self.most.bit_length())), self.most):
                self.batcher.submit(self._blank(size)).result()
        except Exception as error:  # nobody joins this thread: the log and `check` tell it
            if not isinstance(error, StoppingError):
                logging.getLogger("uvicorn.error").exception("a batch cannot be run; the server will not be ready")
            self._warm.set_exception(error)
        else:
            self.ready = True
            self._warm.set_result(None)

    def _blank(self, images: int) -> Tensor:
        return torch.zeros(images, self.model.config.in_channels, self.classifier.side, self.classifier.side)

    @contextmanager
    def places(self, pictures: int) -> Iterator[None]:
        """Inside, so many pictures are in the server. Raises RequestError at once if there is no room."""
        if pictures > self.options.queue:
            raise RequestError(f"the request has {pictures} images, {self.options.queue} may be in the server", 413)
        if self._inside + pictures > self.options.queue:
            message = f"{self._inside} pictures are in the server, {self.options.queue} may be; ask again in a second"
            raise RequestError(message, 503, "full")
        self._inside += pictures
        try:
            yield
        finally:
            self._inside -= pictures

    @contextmanager
    def memory(self) -> Iterator[Count]:
        """Inside, a request's bytes are in the server. What is given raises RequestError when there are too many."""
        held, most = 0, self.options.limits.of_all_requests

        def count(size: int) -> None:
            nonlocal held
            if self._bytes + size > most:
                raise RequestError(f"requests of {self._bytes:,} bytes are in the server, {most:,} may be", 503, "full")
            held += size
            self._bytes += size

        try:
            yield count
        finally:
            self._bytes -= held

    async def classify(self, request: Request, topk: int) -> list[Classified]:
        """The pictures of a request. Raises RequestError."""
        with self.memory() as count:
            with self.places(1):  # before its bytes are taken
                files = await pictures_of(request, self.options.limits, count)
            return await self._classified(request, files, topk)

    async def _classified(self, request: Request, files: Sequence[bytes], topk: int) -> list[Classified]:
        with self.places(len(files)):
            work = asyncio.gather(*(self.classifier.classify(data, topk) for data in files), return_exceptions=True)
            found = await _while_connected(request, work)
        for index, result in enumerate(found):
            if isinstance(result, ImageError):
                where = f"picture {index + 1} of {len(found)}: " if len(found) > 1 else ""
                raise RequestError(f"{where}{result}", 400, "picture") from result
            if isinstance(result, BaseException):
                raise result
            self._count(result)
        return found

    async def explain(self, request: Request, index: int | None) -> HeatMaps:
        """Of the one picture of a request. Raises RequestError."""
        with self.places(1), self._explanation(), self.memory() as count:
            files = await pictures_of(request, self.options.limits, count)
            if len(files) > 1:
                raise RequestError(f"the request has {len(files)} pictures; one is explained at a time")
            try:
                return await _while_connected(request, asyncio.ensure_future(self.explainer.explain(files[0], index)))
            except ImageError as error:
                raise RequestError(str(error), 400, "picture") from error

    @contextmanager
    def _explanation(self) -> Iterator[None]:
        """One is computed at a time: who waits for it takes no place from predictions."""
        if self._explaining >= EXPLANATIONS:
            raise RequestError(f"{self._explaining} pictures wait to be explained; ask again in a second", 503, "full")
        self._explaining += 1
        try:
            yield
        finally:
            self._explaining -= 1

    async def infer(self, request: Request) -> Response:
        """An answer of the KServe protocol. Raises RequestError."""
        with self.memory() as count:
            with self.places(1):
                body = await body_of(request, self.options.limits.of_a_request, count)
                header = request.headers.get(kserve.HEADER)
                inference = await asyncio.to_thread(self._read, body, header)
            return await self._inferred(request, inference)

    async def _inferred(self, request: Request, inference: kserve.Inference) -> Response:
        with self.places(len(inference.images)):
            parts = [asyncio.wrap_future(self.batcher.submit(part)) for part in inference.images.split(self.most)]
            answers = await _while_connected(request, asyncio.gather(*parts))
        content, size = await asyncio.to_thread(self._written, inference, answers)
        if size is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={kserve.HEADER: str(size)})

    def _read(self, body: bytes, header: str | None) -> kserve.Inference:
        inference = kserve.read(body, header, self.model.outputs)
        try:
            check_images(inference.images, self.model.config, self.model.pad, torch.device("cpu"))
        except ArgumentError as error:
            raise RequestError(str(error), 400, "tensor") from error
        return inference

    def _written(self, inference: kserve.Inference, answers: Sequence[Answer]) -> tuple[bytes, int | None]:
        outputs = [torch.cat(values) for values in zip(*(answer.outputs for answer in answers), strict=True)]
        for values in outputs:
            check_finite(values)
        return kserve.written(inference, dict(zip(self.model.outputs, outputs, strict=True)))

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model.run(images.to(self.model.device))
        self.metrics.batches.observe(len(images))
        return tuple(output.cpu() for output in outputs)

    def _count(self, result: Classified) -> None:
        self.metrics.pictures.inc()
        for stage, milliseconds in result.milliseconds.items():
            self.metrics.stages.labels(stage).observe(milliseconds / 1e3)


async def _while_connected(request: Request, work: asyncio.Future[Any]) -> Any:
    """The work's result, or the work is cancelled when the client goes away."""
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        gone.cancel()
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # or asyncio logs what it ended by
        work.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
