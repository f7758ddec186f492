"""batch(): the likeliest classes of many pictures, in a file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from filelock import FileLock

from ..cluster import HERE, check_ray
from ..datasets.dataset import PictureSet, open_pictures
from ..deploy.fast_conformer import FastConformer
from ..deploy.predict import check_model
from ..errors import ArgumentError, ArgumentTypeError, shown, truth, whole
from ..evaluation.decoding import decoded, usual_workers
from ..evaluation.resume import fields_of
from ..model.recipe import shown_labels
from ..progress import Bar
from ..storage.lines import going_on
from ..storage.lock import held
from .journal import Journal
from .on_ray import rows_by_ray
from .report import BatchResult
from .results import WRITERS, check_results, ending_of
from .rows import Row, as_text, rows_of

BATCH = 32  # pictures run together
CORES = 4  # of an actor of Ray
PART, NEW, LOCK = ".part", ".part.new", ".lock"  # behind the output: the rows so far, these as results, who writes


def batch(
    model: FastConformer,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    topk: int = 5,
    size: int | None = None,
    batch: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    cores: int | None = None,
    progress: bool = True,
) -> BatchResult:
    """Classifies all pictures of a source by the published preprocessing: a row a picture, in the source's order.

    source:   a folder of pictures, at any depth; a tar file (WebDataset too) or a parquet file with a column `image`; a
              folder of such; or a pattern of such, as "shard-*.tar". Or a list of picture files, folders, patterns,
              http and https addresses and "-", the standard input, which has one picture. No picture needs a label.
    out:      ".jsonl", ".csv" or ".parquet"; it appears when it is whole. docs/batches.md has its columns
    topk:     classes of each picture; all of them if the model has fewer
    size:     side of the model's input in pixels; default: what the engine is tuned for, or the model was trained on
    batch:    pictures run together; default: 32, or the most that the engine takes
    workers:  processes that decode; 0: this one does. Default: a quarter of the cores, for a GPU all of them, 16 at
              most
    ray:      the address of a Ray cluster, whose actors decode and run the model; "local": of this machine alone, while
              it lasts. Every node has the pictures, and the bundle that the model was loaded from, at the same paths; a
              compiled model is sent with its weights
    cores:    of each actor. There is one for each GPU if the model runs on one, else for each so many cores. Default: 4
    progress: show a bar with the time left where the error output is a terminal, elsewhere a line every 30 s

    A damaged picture has a row with its error, and is listed in what is returned. `out` + ".part" keeps what is done:
    the same call goes on with it, however the last one ended, and writes what that would have written. A second call
    for the same `out` waits for the first. Decoding processes import the program that calls this; guard it with
    `if __name__ == "__main__":`.

    Raises ArgumentError for an `out` that is there already or has another ending, a model without scores or that reads
    no pictures, numbers that do not fit, and scores that are NaN or infinite; ArgumentTypeError for what is no compiled
    or loaded model; BackendError where pyarrow or Ray is missing, and when Ray fails; DatasetError for a source without
    pictures or a damaged file, and for a ".part" of another model, source or options; OSError when the disk is full,
    after which the same call goes on, or when a decoding process ends.
    """
    if not isinstance(model, FastConformer):
        raise ArgumentTypeError(f"batch needs a classifier that compile or load returned, got {shown(repr(model))}")
    truth("progress", progress)
    topk = min(whole("topk", topk), model.config.num_classes)
    file = check_results(out)
    check_model(model)
    size = model.input_side(size)
    batch = model.at_once(BATCH) if batch is None else whole("batch", batch)
    if ray is not None:
        _check_ray(ray, workers)
        workers = 0
    elif cores is not None:
        raise ArgumentError("cores are those of Ray's actors; leave them out, or give ray")
    workers = usual_workers(model.device) if workers is None else whole("workers", workers, least=0)
    cores = CORES if cores is None else whole("cores", cores)
    shown_labels(model.recipe, model.config)  # warns
    pictures = open_pictures(source)
    names = [as_text(picture.name) for picture in pictures.pictures]
    start = time.perf_counter()
    with held(FileLock(_beside(file, LOCK))):
        check_results(out)  # whoever was waited for may have written it
        fields = {**_fields(model, pictures, topk), **fields_of(model, len(names), size, batch)}
        with closing(Journal(_beside(file, PART), fields, names, batch)) as journal:
            before = journal.count
            with Bar("predicting", len(names), "picture", done=before, shown=progress) as bar:
                groups = [range(first, min(first + batch, len(names))) for first in range(before, len(names), batch)]
                if ray is None:
                    found = _rows_here(model, pictures, names, groups, size, topk, workers)
                else:
                    found = rows_by_ray(model, pictures, names, groups, size, topk, ray, cores)
                with closing(found):
                    for group, rows in zip(groups, found, strict=True):
                        journal.add(rows)
                        bar.update(len(group))
            damaged = _write(journal, file, out, topk)
    return BatchResult(
        out=os.fspath(out),
        source=pictures.source,
        kind=pictures.kind,
        pictures=len(names),
        went_on_from=before,
        damaged=damaged,
        backend=model.settings.backend.name,
        precision=model.settings.precision,
        device=str(model.device),
        reason=model.reason,
        size=size,
        batch=batch,
        workers=workers,
        ray=ray,
        seconds=time.perf_counter() - start,
    )


def _check_ray(ray: str, workers: int | None) -> None:
    if not isinstance(ray, str) or not ray:
        raise ArgumentTypeError(f"ray must be the address of a cluster, or {HERE!r}, got {shown(repr(ray))}")
    if workers is not None:
        raise ArgumentError("workers decode for one process, Ray's actors decode themselves; leave them out")
    check_ray()


def _rows_here(
    model: FastConformer,
    pictures: PictureSet,
    names: Sequence[str],
    groups: Sequence[range],
    size: int,
    topk: int,
    workers: int,
) -> Generator[list[Row], None, None]:
    """The rows of each group, in order, by this process and those that decode for it."""
    with closing(decoded(pictures, size, groups, workers)) as found:
        for group, images in zip(groups, found, strict=True):
            yield rows_of(model, images, group, names, topk)


def _fields(model: FastConformer, pictures: PictureSet, topk: int) -> dict[str, str | int]:
    """What decides the rows beside the scores."""
    labels = hashlib.sha256(json.dumps(model.labels).encode()).hexdigest()
    return {"source": pictures.sha256(), "topk": topk, "labels": labels}


def _write(journal: Journal, file: Path, out: str | os.PathLike[str], topk: int) -> dict[str, str]:
    """The results, whole, in place of the journal. Returns the damaged pictures' names and errors."""
    damaged: dict[str, str] = {}

    def rows() -> Iterator[Row]:
        for row in journal.rows():
            if row.error is not None:
                damaged[row.picture] = row.error
            yield row

    new = _beside(file, NEW)
    with going_on(new):
        new.unlink(missing_ok=True)  # of a call that was killed here
        try:
            with open(new, "xb") as opened:
                WRITERS[ending_of(out)](opened, rows(), topk)
            check_results(out)
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
    journal.remove()
    return damaged


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)
