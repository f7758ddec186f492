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
INPUT = "images"
TYPES = {"FP32": np.float32, "FP16": np.float16, "UINT8": np.uint8}  # of images
HEADER = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)
MOST_PIXELS = 1 << 21  # of an image: attention's memory grows by their square


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
        if not header.isdecimal() or int(header) > size:
            raise RequestError(f"{HEADER} is {header!r}, the request has {size} bytes")
        size = int(header)
    try:
        request = json.loads(body[:size])
        inputs, id_ = request["inputs"], request.get("id")
        wanted, parameters = request.get("outputs"), request.get("parameters") or {}
        (given,) = inputs
        name, kind, shape = given["name"], given["datatype"], given["shape"]
        all_binary = bool(parameters.get("binary_data_output", False))
        asked = [(output["name"], output.get("parameters") or {}) for output in wanted] if wanted else []
        outputs = {output: bool(options.get("binary_data", all_binary)) for output, options in asked}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"no inference request of one input {INPUT!r}: {type(error).__name__}: {error}") from error
    if name != INPUT or kind not in TYPES:
        raise RequestError(f"the input is {name!r} of {kind!r}; it must be {INPUT!r}, of {', '.join(TYPES)}")
    unknown = [output for output in outputs if output not in known]
    if unknown:
        raise RequestError(f"there is no output {unknown[0]!r}; there are {', '.join(known)}")
    images = _values(given, kind, shape, body[size:])
    return Inference(id_, images, outputs or dict.fromkeys(known, all_binary))


def _values(given: Mapping[str, Any], kind: str, shape: Any, binary: bytes) -> Tensor:
    if not (isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)):
        raise RequestError(f"the shape {shape!r} is no list of positive numbers")
    if len(shape) == 4 and shape[2] * shape[3] > MOST_PIXELS:
        raise RequestError(f"images of {shape[2]}x{shape[3]} have over {MOST_PIXELS:,} pixels, which are allowed", 413)
    dtype = np.dtype(TYPES[kind])
    size = (given.get("parameters") or {}).get("binary_data_size")
    if size is None:
        try:
            flat = np.asarray(given["data"], dtype).reshape(-1)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise RequestError(f"the input's data are no numbers of {kind}: {type(error).__name__}") from error
    else:
        if size != len(binary) or size % dtype.itemsize:
            raise RequestError(f"binary_data_size is {size!r}, {len(binary)} bytes follow the JSON")
        flat = np.frombuffer(bytearray(binary), dtype)
    if flat.size != math.prod(shape):
        raise RequestError(f"the input has {flat.size} values, the shape {shape} has {math.prod(shape)}")
    return torch.from_numpy(flat).view(shape)


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
