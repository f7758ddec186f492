"""The KServe v2 protocol over HTTP: tensors in JSON, or in binary behind it. Clients of NVIDIA Triton speak it too.

Source: KServe, "Open Inference Protocol (V2)", and its extension "Binary tensor data".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import shown
from .reading import RequestError

NAME, VERSION = "conformer", "1"
MOST_DIGITS = 12  # of a length
MOST_SIDES = 8  # of a shape, whose product stays a number that can be shown
INPUT = "images"
TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}  # of images
HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)
MOST_PIXELS, MOST_IN_ALL = 1 << 21, 1 << 22  # of an image, of a request: attention grows by the square of an image's
MOST_JSON = 1 << 24  # bytes: while JSON is parsed nothing else runs
MOST_LISTS = 100_000


def check(name: str, version: str) -> None:
    """Raises RequestError for another model."""
    if (name, version) != (NAME, VERSION):
        raise RequestError(f"there is no model {shown(name)} version {shown(version)}; {NAME} {VERSION} is", 404)


@dataclass(frozen=True)
class Inference:
    """A request. outputs: the names that are asked for, each with whether it is to be binary."""

    id: str | None
    images: Tensor
    outputs: dict[str, bool]


def read(body: bytes, header: str | None, known: Sequence[str]) -> Inference:
    """header: the bytes of JSON before binary tensors, None if there are none. known: the model's outputs.

    Raises RequestError for what is no request of this protocol and model.
    """
    size = len(body)
    if header is not None:
        if not header.isdecimal() or len(header) > MOST_DIGITS or int(header) > size:
            raise RequestError(f"{HEADER} is {shown(repr(header))}, the request has {size} bytes")
        size = int(header)
    if size > MOST_JSON or body.count(b"[", 0, size) > MOST_LISTS:
        raise RequestError(f"tensors in JSON may have {MOST_JSON:,} bytes and {MOST_LISTS:,} lists; send binary", 413)
    try:
        request = json.loads(body[:size])
        inputs, id_ = request["inputs"], request.get("id")
        wanted, parameters = request.get("outputs"), request.get("parameters") or {}
        (given,) = inputs
        name, kind, shape = given["name"], given["datatype"], given["shape"]
        all_binary = bool(parameters.get("binary_data_output", False))
        asked = [(output["name"], output.get("parameters") or {}) for output in wanted] if wanted else []
        outputs = {output: bool(options.get("binary_data", all_binary)) for output, options in asked}
        binary = (given.get("parameters") or {}).get("binary_data_size")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"this is no inference request of one input {INPUT!r}") from error
    if not isinstance(id_, str | None):
        raise RequestError(f"the id must be a text, got {shown(repr(id_))}")
    if name != INPUT or not isinstance(kind, str) or kind not in TYPES:
        raise RequestError(f"the input is {name!r} of {kind!r}; it must be {INPUT!r}, of {', '.join(TYPES)}")
    unknown = [output for output in outputs if output not in known]
    if unknown:
        raise RequestError(f"there is no output {unknown[0]!r}; there are {', '.join(known)}")
    _check_shape(shape)
    values = _from_json(given.get("data"), kind) if binary is None else _from_bytes(body[size:], binary, kind)
    if values.size != math.prod(shape):
        raise RequestError(f"the input has {values.size} values, the shape {shape} has {math.prod(shape)}")
    images = torch.from_numpy(values).view(shape)
    return Inference(id_, images, outputs or dict.fromkeys(known, all_binary))


def _check_shape(shape: Any) -> None:
    """Raises RequestError for what is no shape of images, or of too many pixels."""
    sides = shape if isinstance(shape, list) and len(shape) <= MOST_SIDES else [0]
    if not all(type(side) is int and 0 < side < 1 << 31 for side in sides):
        raise RequestError(f"the shape {shown(repr(shape))} is no list of positive numbers")
    if len(shape) != 4:
        return  # the model says what it takes
    pixels = shape[2] * shape[3]
    if pixels > MOST_PIXELS or shape[0] * pixels > MOST_IN_ALL:
        raise RequestError(
            f"{shape[0]} images of {shape[2]}x{shape[3]}: an image may have {MOST_PIXELS:,} pixels, a request "
            f"{MOST_IN_ALL:,}",
            413,
        )


def _from_json(data: Any, kind: str) -> np.ndarray:
    try:
        given = np.asarray(data).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(f"the input's data are no numbers of {kind}") from error
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite value is refused later
        values = given.astype(TYPES[kind]) if given.dtype.kind in "iuf" else None
    if values is None or (kind == "UINT8" and not np.array_equal(values, given)):
        raise RequestError(f"the input's data are no numbers of {kind}")
    return values


def _from_bytes(data: bytes, size: Any, kind: str) -> np.ndarray:
    if type(size) is not int or size != len(data) or size % np.dtype(TYPES[kind]).itemsize:
        raise RequestError(f"binary_data_size is {shown(repr(size))}, {len(data)} bytes follow the JSON")
    return np.frombuffer(bytearray(data), TYPES[kind])


def written(inference: Inference, outputs: Mapping[str, Tensor]) -> tuple[bytes, int | None]:
    """The answer's bytes, and how many of them are JSON if binary tensors follow."""
    entries, binary = [], []
    for name, as_binary in inference.outputs.items():
        values = np.ascontiguousarray(outputs[name].float().numpy())
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if as_binary:
            entry["parameters"] = {"binary_data_size": values.nbytes}
            binary.append(values.tobytes())
        else:
            entry["data"] = values.reshape(-1).tolist()
        entries.append(entry)
    answer = {"model_name": NAME, "model_version": VERSION, "outputs": entries}
    if inference.id is not None:
        answer["id"] = inference.id
    head = json.dumps(answer).encode()
    return b"".join([head, *binary]), len(head) if binary else None


def metadata(channels: int, outputs: Mapping[str, list[int]]) -> dict[str, Any]:
    """What the model takes and gives. outputs: their shapes, -1 for what is free."""
    return {
        "name": NAME,
        "versions": [VERSION],
        "platform": "conformer_fast",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, channels, -1, -1]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": shape} for name, shape in outputs.items()],
    }
