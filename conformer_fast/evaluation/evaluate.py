"""evaluate(): how often a compiled model is right on labeled pictures, beside its reference in the same pass.

Pictures are decoded by several processes and come back in the data set's order, in batches that its order alone
decides, so the result depends neither on the number of processes nor on interruptions. Of equal scores the class of the
lower number counts as the better one.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.adopt import Model
from ..datasets.dataset import Dataset, open_dataset
from ..engines.module import EngineModule
from ..errors import ArgumentError, ArgumentTypeError, DatasetError, a_path, truth, whole
from ..model.forked import before_computing
from ..model.outputs import LOGITS, SUM
from ..model.precision import tf32_as_asked
from ..model.reference import Conformer
from ..progress import Bar
from .decoding import decoded, usual_workers
from .published import published_for
from .report import Evaluation, Score
from .resume import DONE, TODO, Record, fields_of

BATCH = 32
BEST = 5  # classes kept of each picture
SAVE_EVERY = 20.0  # seconds; a killed program loses at most so much


def evaluate(
    fast: EngineModule,
    data: Dataset | str | os.PathLike[str],
    *,
    reference: Model | None = None,
    size: int | None = None,
    batch: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    skip_damaged: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Runs `fast` on labeled pictures, by the published preprocessing, and counts how often it is right.

    data:         what `open_dataset` takes, or has returned
    reference:    also run the model that it was made from, in fp32 on the same batches: `fast.reference` of a compiled
                  model, or anything that `compile` takes
    size:         side of the input in pixels; default: what the engine or the model is for, 224 for published ones
    batch:        pictures run together; default: 32, or the most that the engine takes
    workers:      processes that decode; 0: this one does. Default: a quarter of the cores, for a GPU all of them, 16 at
                  most
    limit:        evaluate at most so many pictures, evenly from all
    skip_damaged: leave damaged pictures out of the counts and list them, instead of raising ImageError
    resume:       a file that keeps what is done, also when interrupted. If it is there, the rest is done. A full disk
                  costs only the keeping, with a warning.
    progress:     show a bar with the time left where the error output is a terminal, elsewhere a line every 30 seconds

    The decoding processes import the program that calls this; guard it with `if __name__ == "__main__":`.

    Raises DatasetError for data that does not fit the model, or a `resume` file of another evaluation; ImageError for a
    damaged picture, or when none could be used; ArgumentError for other values that do not fit, and when a score is NaN
    or infinite; OSError when `resume` cannot be written at the start, or a decoding process ends.
    """
    if not isinstance(fast, EngineModule):
        raise ArgumentTypeError(
            f"evaluate runs compiled classifiers, got a {type(fast).__name__}; compile it first, or give a detector to "
            f"evaluate_detector"
        )
    before_computing()
    truth("skip_damaged", skip_damaged)
    truth("progress", progress)
    resume = None if resume is None else a_path("the file to resume from", resume)
    _check_model(fast)
    if isinstance(data, Dataset):
        dataset = data
    else:
        dataset = open_dataset(data, num_classes=fast.config.num_classes, class_names=fast.recipe.labels)
    dataset = dataset if limit is None else dataset.evenly(whole("limit", limit))
    size = fast.input_side(size)
    batch = fast.at_once(BATCH) if batch is None else whole("batch", batch)
    workers = usual_workers(fast.device) if workers is None else whole("workers", workers, least=0)
    _check_data(fast, dataset)
    dataset.check_names(fast.recipe.labels)
    judge = None if reference is None else fast.reference_of(reference)
    heads = ("conv", "trans", "sum") if set(LOGITS) <= set(fast.outputs) else ("sum",)
    best = min(BEST, fast.config.num_classes)
    models = [_Model("compiled", fast.run, fast.outputs, heads, best)]
    if judge is not None:
        models.append(_Model("reference", _run_of(judge, fast.device), LOGITS, heads, best))
    fields = {"data": dataset.sha256(), "reference": judge is not None, **fields_of(fast, len(dataset), size, batch)}
    record = Record(len(dataset), len(models), len(heads), best, fields)
    if fast.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fast.device)

    with (
        _kept(record, resume, skip_damaged) as keep,
        Bar("evaluating", len(dataset), "image", done=record.known, shown=progress) as bar,
    ):
        starts = range(0, len(dataset), batch)
        groups = [list(range(start, min(start + batch, len(dataset)))) for start in starts]
        groups = [group for group in groups if (record.states[group] == TODO).any()]
        for model in models if groups else ():
            model.run(torch.zeros(len(groups[0]), 3, size, size, device=fast.device))  # builds its engine, untimed
        images, start = 0, time.perf_counter()
        with closing(decoded(dataset, size, groups, workers)) as batches:
            for found in batches:
                if found.errors and not skip_damaged:
                    _refuse(f"{next(iter(found.errors.values()))}; skip_damaged leaves such pictures out")
                if found.images is not None:
                    inputs = fast.as_input(torch.from_numpy(found.images).to(fast.device))
                    record.add(found.pictures, np.stack([model(inputs) for model in models], 1))
                record.add_damaged(found.errors)
                images += len(found.pictures)
                bar.update(record.known - bar.n)
                keep()
        seconds = time.perf_counter() - start
    evaluated = int((record.states == DONE).sum())
    if not evaluated:
        _refuse(f"none of the {len(dataset)} pictures could be used; the first: {min(record.errors.items())[1]}")
    scores = [_scores(record, model, heads, dataset.labels) for model in range(len(models))]
    return Evaluation(
        data=dataset.source,
        kind=dataset.kind,
        pictures=len(dataset),
        evaluated=evaluated,
        damaged={dataset.pictures[index].name: error for index, error in sorted(record.errors.items())},
        backend=fast.settings.backend.name,
        precision=fast.settings.precision,
        device=str(fast.device),
        reason=fast.reason,
        size=size,
        batch=batch,
        workers=workers,
        compiled=scores[0],
        reference=scores[1] if judge else {},
        agreement=_agreement(record, heads) if judge else {},
        published=tuple(published_for(fast.config)),
        images_run=images,
        seconds={"end_to_end": seconds, **{model.name: model.seconds for model in models}} if images else {},
        memory=_peak_memory(fast.device, workers),
    )


class _Model:
    """images -> the best classes of each, int32 (B, heads, best). seconds: what the model alone took for all so far."""

    def __init__(
        self,
        name: str,
        run: Callable[[Tensor], tuple[Tensor, ...]],
        outputs: Sequence[str],
        heads: Sequence[str],
        best: int,
    ) -> None:
        self.name, self.run, self.seconds = name, run, 0.0
        self._outputs, self._heads, self._best = outputs, heads, best

    def __call__(self, images: Tensor) -> np.ndarray:
        _finish(images.device)
        start = time.perf_counter()
        values = self.run(images)
        _finish(images.device)
        self.seconds += time.perf_counter() - start
        found = dict(zip(self._outputs, values, strict=True))
        if set(LOGITS) <= found.keys():
            conv, trans = (found[name].float() for name in LOGITS)
            known = {"conv": conv, "trans": trans, "sum": conv + trans}
        else:
            known = {"sum": found[SUM].float()}
        scores = torch.stack([known[head] for head in self._heads], 1)  # (B, heads, classes)
        wrong = int((~scores.isfinite()).any(2).any(1).sum())
        if wrong:
            raise ArgumentError(
                f"the {self.name} model's scores of {wrong} pictures are NaN or infinite, beyond the precision's "
                f"range; use bf16 or fp32, or check the weights"
            )
        order = scores.sort(dim=2, descending=True, stable=True).indices
        return order[..., : self._best].int().cpu().numpy()


@contextmanager
def _kept(record: Record, resume: str | os.PathLike[str] | None, skip_damaged: bool) -> Iterator[Callable[[], None]]:
    """Inside, the record begins with what `resume` holds, and is written there at the end, however that comes. Yields
    what also writes it now and then."""
    if resume is None:
        yield lambda: None
        return
    if os.path.lexists(resume):
        record.load(resume)
    if not skip_damaged:
        record.retry_damaged()
    full = (errno.ENOSPC, errno.EDQUOT)
    said = False

    def save(tolerated: bool) -> None:
        nonlocal said
        try:
            record.save(resume)
        except OSError as error:
            if not tolerated and error.errno not in full:
                raise  # before anything is run
            if not said:
                warnings.warn(f"what is done is not kept in {resume} ({error.strerror})", stacklevel=2)
            said = True

    save(tolerated=False)
    saved = time.monotonic()

    def now_and_then() -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_EVERY:
            save(tolerated=True)
            saved = time.monotonic()

    try:
        yield now_and_then
    finally:
        save(tolerated=True)


def _check_model(fast: EngineModule) -> None:
    if not (set(LOGITS) <= set(fast.outputs) or SUM in fast.outputs):
        raise ArgumentError(
            f"the model returns {', '.join(fast.outputs)}; evaluation needs {', '.join(LOGITS)} or {SUM}"
        )
    channels = fast.config.in_channels
    if channels != 3:
        raise ArgumentError(f"pictures have 3 channels, the model reads {channels}; evaluation cannot run it")


def _check_data(fast: EngineModule, dataset: Dataset) -> None:
    if not len(dataset):
        raise DatasetError(f"{dataset.source} has no pictures")
    if not 0 <= min(dataset.labels) <= max(dataset.labels) < fast.config.num_classes:
        raise DatasetError(
            f"{dataset.source} has labels {min(dataset.labels)} ... {max(dataset.labels)}, the model has the classes "
            f"0 ... {fast.config.num_classes - 1}; take the data it was trained for"
        )


def _run_of(reference: Conformer, device: torch.device) -> Callable[[Tensor], tuple[Tensor, ...]]:
    model = reference.to(device)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), tf32_as_asked(torch.float32):
            return tuple(model(images))

    return run


def _scores(record: Record, model: int, heads: Sequence[str], labels: Sequence[int]) -> dict[str, Score]:
    done = record.states == DONE
    right = record.top[done, model] == np.array(labels)[done, None, None]  # (pictures, heads, best)
    return {
        head: Score(int(right[:, number, 0].sum()), int(right[:, number].any(-1).sum()))
        for number, head in enumerate(heads)
    }


def _agreement(record: Record, heads: Sequence[str]) -> dict[str, int]:
    compiled, reference = record.top[record.states == DONE, :, :, 0].swapaxes(0, 1)  # (pictures, heads) each
    return dict(zip(heads, (compiled == reference).sum(0).tolist(), strict=True))


def _peak_memory(device: torch.device, workers: int) -> dict[str, int]:
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if workers:
            found["largest_worker"] = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated(device)
    return {name: size for name, size in found.items() if size}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _refuse(message: str) -> NoReturn:
    from ..errors import ImageError  # it needs Pillow, the package's import does not

    raise ImageError(message)
