"""The rows of groups of pictures, by actors of Ray: each makes the model once, and one that ends is started again.

A group's rows come from one task of an actor, which Ray runs again if the actor ends before it has them all; the caller
gets them in order. So none is lost or doubled.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from socket import gethostname
from threading import local
from typing import Any, NamedTuple

from ..cluster import reach
from ..datasets.dataset import PictureSet
from ..datasets.named import is_on_disk
from ..deploy.fast_conformer import FastConformer
from ..errors import BackendError, ConformerFastError, DatasetError, shown
from ..evaluation.decode import Decoded, decode
from ..preprocessing.pillow_warnings import ignore_damaged_metadata
from .rows import Row, rows_of

GROUPS = 8  # of a task


def rows_by_ray(
    model: FastConformer,
    pictures: PictureSet,
    names: Sequence[str],
    groups: Sequence[range],
    size: int,
    topk: int,
    address: str,
    cores: int,
) -> Generator[list[Row], None, None]:
    """The rows of each group, in order.

    address: of a Ray cluster; HERE: one is started. A program that is connected already stays so
    cores:   of an actor. There is one for each GPU if the model runs on one, else for each so many cores

    Raises BackendError when Ray cannot be reached or fails, and what an actor raises of ours.
    """
    if not groups:
        return
    import ray

    work = _Work(pickle.dumps(model), _anywhere(pictures), names, groups, size, topk, cores)
    with _connected(address), _ours():
        from ray import data

        places = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = max(1, min(cores, *(int(place.get("CPU", 0)) for place in places)))
        if model.device.type == "cuda":
            actors, gpus = sum(int(place.get("GPU", 0)) for place in places), 1
        else:
            actors, gpus = sum(int(place.get("CPU", 0)) // cores for place in places), 0
        if not actors:
            raise BackendError(f"the Ray cluster has no {'GPU' if gpus else 'CPU'} for a model on {model.device}")
        tasks = -(-len(groups) // GROUPS)
        numbers = data.from_items([{"number": number} for number in range(len(groups))], override_num_blocks=tasks)
        found = numbers.map_batches(
            Actor,
            fn_constructor_args=(ray.put(work),),
            batch_size=GROUPS,
            compute=data.ActorPoolStrategy(min_size=1, max_size=min(actors, tasks)),
            num_cpus=cores,
            num_gpus=gpus or None,
        )
        for expected, item in enumerate(found.iter_rows()):
            if item["number"] != expected:
                raise BackendError(f"Ray gave group {item['number']} where {expected} was due; run it without Ray")
            if item["error"]:
                raise pickle.loads(item["error"])
            yield [Row(*row) for row in json.loads(item["rows"])]


class _Work(NamedTuple):
    """What each actor gets once. model: pickled; threads: that decode; else as `rows_by_ray` has it."""

    model: bytes
    pictures: PictureSet
    names: Sequence[str]
    groups: Sequence[range]
    size: int
    topk: int
    threads: int


class Actor:
    """What runs in an actor: it loads the model once, then decodes groups in threads beside it."""

    def __init__(self, work: Any) -> None:
        """work: the reference to a `_Work`"""
        import ray

        ignore_damaged_metadata()
        self._work: _Work = ray.get(work)
        self._threads, self._own = ThreadPoolExecutor(self._work.threads), local()
        self._model: FastConformer | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """number: of groups -> the same, and of each the rows as JSON, or an error of ours, pickled: of what is raised
        in an actor Ray keeps a text."""
        numbers = [int(number) for number in batch["number"]]
        groups = [self._work.groups[number] for number in numbers]
        rows, errors = [], []
        for group, found in zip(groups, self._threads.map(self._decoded, groups), strict=True):
            try:
                if self._model is None:
                    self._model = _model(self._work)
                rows.append(json.dumps(rows_of(self._model, found, group, self._work.names, self._work.topk)))
                errors.append(b"")
            except ConformerFastError as error:
                rows.append("")
                errors.append(pickle.dumps(error))
        return {"number": numbers, "rows": rows, "error": errors}

    def _decoded(self, group: range) -> Decoded:
        if not hasattr(self._own, "pictures"):
            self._own.pictures = replace(self._work.pictures)  # it keeps a file open
        return decode(self._own.pictures, self._work.size, group)


def _model(work: _Work) -> FastConformer:
    """Raises DatasetError where the pictures are not, of which else all would be damaged."""
    files = filter(is_on_disk, (picture.file for picture in work.pictures.pictures))
    folder = os.path.dirname(next(files, ""))
    if folder and not os.path.isdir(folder):
        raise DatasetError(f"{gethostname()} has no folder {folder}; every node must have the pictures there")
    return pickle.loads(work.model)


def _anywhere(pictures: PictureSet) -> PictureSet:
    """The same by paths that do not depend on the current folder, which each process has its own of."""
    absolute = {one.file: os.path.abspath(one.file) if is_on_disk(one.file) else one.file for one in pictures.pictures}
    return replace(pictures, pictures=tuple(replace(one, file=absolute[one.file]) for one in pictures.pictures))


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    reach(address)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ours() -> Iterator[None]:
    """Inside, results come in order, without bars and reports of Ray's own, whose errors become ours."""
    from ray import data, exceptions

    context, log = data.DataContext.get_current(), logging.getLogger("ray.data")
    before, level = (context.execution_options.preserve_order, context.enable_progress_bars), log.level
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    log.setLevel(logging.ERROR)
    try:
        yield
    except exceptions.RayError as error:
        raise BackendError(f"Ray failed: {shown(str(error).strip().splitlines()[-1], 1000)}") from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        log.setLevel(level)
