# ruff: noqa: N999 -- the usual name of a compiled module
from collections.abc import Sequence
from typing import Any

from numpy import ndarray

sources: str

def instruction_sets() -> list[str]: ...
def int8_instruction_sets() -> list[str]: ...
def strip_spare_rows(width: int) -> int: ...
def resample(
    pictures: Sequence[tuple[Any, int, int, int, int, int, int, bool]],
    out: ndarray,
    channels_last: bool,
    values: ndarray | None,
    threads: int,
    instructions: str = "",
) -> None: ...
def best(boxes: ndarray, groups: ndarray, threshold: float) -> ndarray: ...
def roi_align(
    feature_maps: Sequence[ndarray], levels: ndarray, regions: ndarray, out: ndarray, threads: int
) -> None: ...
def winograd_weights(weights: ndarray) -> ndarray: ...
def winograd(
    maps: ndarray,
    weights: ndarray,
    bias: ndarray,
    relu: bool,
    out: ndarray,
    threads: int,
    instructions: str = "",
) -> None: ...
