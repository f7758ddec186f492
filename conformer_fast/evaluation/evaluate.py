"""evaluate(): how often a compiled model is right on labeled pictures, beside its reference in the same pass.

Pictures are decoded by several processes and come back in the data set's order, in batches that its order alone
decides, so the result depends neither on the number of processes nor on interruptions. Of equal scores the class of the
lower number counts as the better one.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..datasets.dataset import Dataset, open_dataset
from ..engines.module import EngineModule
from ..errors import DatasetError
from ..model.digest import weights_sha256
from ..model.outputs import LOGITS, SUM
from ..model.precision import tf32_as_asked
from ..model.reference import Conformer
from ..model.shapes import usual_side
from ..version import __version__
from .published import published_for
from .report import Evaluation, Score
from .resume import DONE, TODO, Tally

BATCH = 32
BEST = 5  # classes kept of each picture
SAVE_EVERY = 20.0  # seconds; a killed program loses at most so much
MOST_WORKERS = 16


def evaluate(
    fast: EngineModule,
    data: Dataset | str | os.PathLike[str],
    *,
    reference: Conformer | None = None,
    size: int | None = None,
    batch: int = BATCH,
    workers: int | None = None,
    limit: int | None = None,
    skip_damaged: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Runs `fast` on labeled pictures, by the published preprocessing, and counts how often it is right.

    data:         what `open_dataset` takes, or has returned
    reference:    also run this model, in fp32 on the same batches; `fast.reference` of a compiled model
    size:         side of the input in pixels; default: that of the model's training, 224 for published ones
    batch:        pictures run together
    workers:      processes that decode; 0: this one does. Default: a quarter of the cores, for a GPU all of them, 16 at
                  most
    limit:        evaluate at most so many pictures, evenly from all
    skip_damaged: leave damaged pictures out of the counts and list them, instead of raising ImageError
    resume:       a file that keeps what is done, also when interrupted. If it is there, the rest is done.
    progress:     show a bar with the time left where the error output is a terminal

    The decoding processes import the program that calls this; guard it with `if __name__ == "__main__":`.

    Raises DatasetError for data that does not fit the model, or a `resume` file of another evaluation; ImageError for a
    damaged picture, or when none could be used; ValueError for other values that do not fit, and when a score is NaN or
    infinite; OSError when `resume` cannot be written.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data, num_classes=fast.config.num_classes)
    dataset = dataset if limit is None else dataset.evenly(_at_least(1, "limit", limit))
    size = usual_side(fast.config) if size is None else _at_least(1, "size", size)
    batch = _at_least(1, "batch", batch)
    workers = _usual_workers(fast.device) if workers is None else _at_least(0, "workers", workers)
    _check(fast, dataset, reference)
    heads = ("conv", "trans", "sum") if set(LOGITS) <= set(fast.outputs) else ("sum",)
    best = min(BEST, fast.config.num_classes)
    models = [_Model("compiled", fast.run, fast.outputs, heads, best)]
    if reference is not None:
        models.append(_Model("reference", _run_of(reference, fast.device), LOGITS, heads, best))
    tally = Tally(len(dataset), len(models), len(heads), best, _fields(fast, dataset, reference, size, batch))
    if fast.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fast.device)

    with _kept(tally, resume, skip_damaged) as keep, _bar(tally, progress) as bar:
        starts = range(0, len(dataset), batch)
        groups = [list(range(start, min(start + batch, len(dataset)))) for start in starts]
        groups = [group for group in groups if (tally.states[group] == TODO).any()]
        for model in models if groups else ():
            model.run(torch.zeros(len(groups[0]), 3, size, size, device=fast.device))  # builds its engine, untimed
        images, start = 0, time.perf_counter()
        for decoded in _decoded(dataset, size, groups, workers, fast.device):
            if decoded.errors and not skip_damaged:
                _refuse(f"{next(iter(decoded.errors.values()))}; or leave damaged pictures out: --skip-damaged")
            if decoded.images is not None:
                inputs = fast.as_input(decoded.images.to(fast.device, non_blocking=True))
                tally.add(decoded.pictures, np.stack([model(inputs) for model in models], 1))
            tally.add_damaged(decoded.errors)
            images += len(decoded.pictures)
            bar.update(tally.known - bar.n)
            keep()
        seconds = time.perf_counter() - start
    evaluated = int((tally.states == DONE).sum())
    if not evaluated:
        _refuse(f"none of the {len(dataset)} pictures could be used; the first: {min(tally.errors.items())[1]}")
    scores = [_scores(tally, model, heads, dataset.labels) for model in range(len(models))]
    return Evaluation(
        data=dataset.source,
        kind=dataset.kind,
        pictures=len(dataset),
        evaluated=evaluated,
        damaged={dataset.pictures[index].name: error for index, error in sorted(tally.errors.items())},
        run=fast.reason,
        backend=fast.settings.backend.name,
        precision=fast.settings.precision,
        size=size,
        batch=batch,
        workers=workers,
        compiled=scores[0],
        reference=scores[1] if reference is not None else {},
        agreement=_agreement(tally, heads) if reference is not None else {},
        published=tuple(published_for(fast.config)),
        images_run=images,
        seconds={"end to end": seconds, **{model.name: model.seconds for model in models}} if images else {},
        memory=_peak_memory(fast.device),
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
            raise ValueError(
                f"the {self.name} model's scores of {wrong} pictures are NaN or infinite, beyond the precision's "
                f"range; use bf16 or fp32, or check the weights"
            )
        order = scores.sort(dim=2, descending=True, stable=True).indices
        return order[..., : self._best].int().cpu().numpy()


class _Decoded(NamedTuple):
    """pictures: indices of those that could be decoded; images: their pixels, uint8 (len(pictures), 3, size, size), or
    None; errors: what is wrong with the others."""

    pictures: list[int]
    images: Tensor | None
    errors: dict[int, str]


class _Inputs(torch.utils.data.Dataset):
    """index -> (index, pixels or what is wrong). Of pixels, a quarter as many bytes pass from process to process."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self._dataset, self._size = dataset, size

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        from ..errors import ImageError

        try:
            return index, self._dataset.input(index, self._size, torch.uint8)
        except ImageError as error:
            return index, str(error)


def _collate(inputs: list[tuple[int, Tensor | str]]) -> _Decoded:
    good = {index: value for index, value in inputs if isinstance(value, Tensor)}
    errors = {index: value for index, value in inputs if isinstance(value, str)}
    return _Decoded(list(good), torch.stack(list(good.values())) if good else None, errors)


def _decoded(
    dataset: Dataset, size: int, groups: Sequence[list[int]], workers: int, device: torch.device
) -> Iterator[_Decoded]:
    """The groups of pictures, in order. The processes are spawned: this one may have threads and a GPU."""
    loader = DataLoader(
        _Inputs(dataset, size),
        batch_sampler=groups,
        num_workers=workers,
        collate_fn=_collate,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # PyTorch's own stays as it is
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a decoding process ended ({error}); if memory ran out, use fewer workers or a smaller batch; a program "
            f'must guard what it runs by `if __name__ == "__main__":`; 0 workers need no process'
        ) from error


@contextmanager
def _kept(tally: Tally, resume: str | os.PathLike[str] | None, skip_damaged: bool) -> Iterator[Callable[[], None]]:
    """Inside, the tally begins with what `resume` holds, and is written there at the end, however that comes. Yields
    what also writes it now and then."""
    if resume is None:
        yield lambda: None
        return
    if os.path.exists(resume):
        tally.load(resume)
    if not skip_damaged:
        tally.retry_damaged()
    tally.save(resume)  # fails before anything is run, if it must
    saved = time.monotonic()

    def now_and_then() -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_EVERY:
            tally.save(resume)
            saved = time.monotonic()

    try:
        yield now_and_then
    finally:
        tally.save(resume)


def _bar(tally: Tally, progress: bool) -> tqdm:
    shown = progress and sys.stderr.isatty()
    total = len(tally.states)
    return tqdm(total=total, initial=tally.known, desc="evaluating", unit="image", disable=not shown, leave=False)


def _check(fast: EngineModule, dataset: Dataset, reference: Conformer | None) -> None:
    config = fast.config
    if not (set(LOGITS) <= set(fast.outputs) or SUM in fast.outputs):
        raise ValueError(f"the model returns {', '.join(fast.outputs)}; evaluation needs {', '.join(LOGITS)} or {SUM}")
    if config.in_channels != 3:
        raise ValueError(f"pictures have 3 channels, the model reads {config.in_channels}; evaluation cannot run it")
    if not len(dataset):
        raise DatasetError(f"{dataset.source} has no pictures")
    if not 0 <= min(dataset.labels) <= max(dataset.labels) < config.num_classes:
        raise DatasetError(
            f"{dataset.source} has labels {min(dataset.labels)} ... {max(dataset.labels)}, the model has the classes "
            f"0 ... {config.num_classes - 1}; take the data it was trained for"
        )
    if reference is None:
        return
    if reference.config != config or reference.features_only:
        raise ValueError(f"the reference must be a {config} with its heads, is a {reference.config}")
    if "bundle" in fast.identity and weights_sha256(reference) != fast.identity["weights"]:
        raise ValueError("the bundle was made from other weights than the reference's; give it those")


def _fields(fast: EngineModule, dataset: Dataset, reference: Conformer | None, size: int, batch: int) -> dict[str, Any]:
    """What decides every prediction: a file to resume from must agree in all of it."""
    gpu = torch.cuda.get_device_name(fast.device) if fast.device.type == "cuda" else None
    return {
        "conformer_fast": __version__,
        "data": dataset.sha256(),
        "pictures": len(dataset),
        **fast.identity,
        "reference": reference is not None,
        "backend": fast.settings.backend.name,
        "precision": fast.settings.precision,
        "gpu": gpu,
        "pad": fast.pad,
        "size": size,
        "batch": batch,
    }


def _run_of(reference: Conformer, device: torch.device) -> Callable[[Tensor], tuple[Tensor, ...]]:
    model = copy.deepcopy(reference).eval().to(device, torch.float32)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), tf32_as_asked(torch.float32):
            return tuple(model(images))

    return run


def _scores(tally: Tally, model: int, heads: Sequence[str], labels: Sequence[int]) -> dict[str, Score]:
    done = tally.states == DONE
    right = tally.top[done, model] == np.array(labels)[done, None, None]  # (pictures, heads, best)
    return {
        head: Score(int(right[:, number, 0].sum()), int(right[:, number].any(-1).sum()))
        for number, head in enumerate(heads)
    }


def _agreement(tally: Tally, heads: Sequence[str]) -> dict[str, int]:
    compiled, reference = tally.top[tally.states == DONE, :, :, 0].swapaxes(0, 1)  # (pictures, heads) each
    return dict(zip(heads, (compiled == reference).sum(0).tolist(), strict=True))


def _usual_workers(device: torch.device) -> int:
    """Where models run on the CPU too, decoding takes a small part of its time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores if device.type == "cuda" else max(1, cores // 4))


def _peak_memory(device: torch.device) -> dict[str, int]:
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["largest worker"] = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if device.type == "cuda":
        found["GPU"] = torch.cuda.max_memory_allocated(device)
    return {name: size for name, size in found.items() if size}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _refuse(message: str) -> NoReturn:
    from ..errors import ImageError  # it needs Pillow, the package's import does not

    raise ImageError(message)


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value
