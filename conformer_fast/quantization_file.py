"""A quantisation as a file: JSON, so that reading one runs nothing and a person can see what it says."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .files import replace_file
from .quantization import FORMATS, Quantization

FORMAT = "conformer-fast quantization 1"


def save_quantization(quantization: Quantization, file: str | os.PathLike[str]) -> Path:
    """Writes it, all at once, and returns the path. Raises OSError when it cannot be written."""
    path = Path(file)
    values = {"format": FORMAT, **asdict(quantization)}
    replace_file(path, (json.dumps(values, indent=1) + "\n").encode(), 0o666)
    return path


def load_quantization(file: str | os.PathLike[str]) -> Quantization:
    """What `save_quantization` wrote. Raises OSError when it cannot be read, ValueError when it is anything else."""
    try:
        values = json.loads(Path(file).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error}); `conformer-fast calibrate -o` writes such files") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{file} is no quantisation: its format is {found!r}, not {FORMAT!r}; "
            f"`conformer-fast calibrate -o` writes such files"
        )
    try:
        return _quantization(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is a damaged quantisation ({error!r}); calibrate again") from error


def _quantization(values: dict[str, Any]) -> Quantization:
    if values["precision"] not in FORMATS:
        raise ValueError(f"precision {values['precision']!r} is none of {', '.join(FORMATS)}")
    ranges = {name: _number(value) for name, value in values["ranges"].items()}
    equalisation = {name: tuple(map(_number, factors)) for name, factors in values["equalisation"].items()}
    return Quantization(values["precision"], ranges, equalisation, dict(values["origin"]))


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool | str) or not 0 <= number < math.inf:
        raise ValueError(f"{value!r} is no magnitude")
    return number
