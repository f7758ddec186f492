"""What a client sent, as bytes of pictures: in memory, and no more of it than is allowed."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..errors import shown


class RequestError(Exception):
    """A request that cannot be answered. status: of HTTP; kind: for the metrics."""

    def __init__(self, message: str, status: int = 400, kind: str = "request") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class Limits:
    """bytes: of a picture's file; megapixels: of a picture; pictures: of a request."""

    bytes: int = 25_000_000
    megapixels: float = 80.0
    pictures: int = 32

    @property
    def of_a_request(self) -> int:
        """Bytes: of several pictures, few are as large as one may be."""
        return 4 * self.bytes


class _InMemory(MultiPartParser):
    """Starlette's would write parts beyond a megabyte to the disk."""

    spool_max_size = 0  # of SpooledTemporaryFile: no limit


async def pictures_of(request: Request, limits: Limits) -> list[bytes]:
    """The files of one or several pictures: a form's parts, a raw body, or {"images": [base64]} as JSON.

    Raises RequestError for a body that is none of these, or is over the limits.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files = await _parts(request, limits)
    elif kind == "application/json":
        files = _decoded(await body_of(request, limits.of_a_request), limits)
    elif kind == "application/x-www-form-urlencoded":
        raise RequestError("a form must be multipart/form-data; with curl: -F picture=@FILE", 415)
    else:
        files = [await body_of(request, limits.bytes)]
    if not any(files):
        raise RequestError("the request has no picture; send its file as the body, in a form or as base64 in JSON")
    if len(files) > limits.pictures:
        raise RequestError(f"the request has {len(files)} pictures, {limits.pictures} are allowed", 413)
    return files


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise RequestError(f"the request is packed by {shown(encoding)!r}; send it as it is", 415)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise RequestError(f"the request has over {most:,} bytes, which are allowed", 413)
        yield chunk


async def body_of(request: Request, most: int) -> bytes:
    """Raises RequestError for one of more bytes."""
    return b"".join([chunk async for chunk in _limited(request, most)])


async def _parts(request: Request, limits: Limits) -> list[bytes]:
    body = _limited(request, limits.of_a_request)
    parser = _InMemory(request.headers, body, max_files=limits.pictures, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(f"the form cannot be read: {error.message}") from error
    try:
        files = [await part.read() for _, part in form.multi_items() if not isinstance(part, str)]
    finally:
        await form.close()
    for data in files:
        _check_bytes(data, limits)
    return files


def _decoded(body: bytes, limits: Limits) -> list[bytes]:
    try:
        images = json.loads(body)["images"]
        if not isinstance(images, list):
            raise TypeError("its images are no list")
        files = [base64.b64decode(image, validate=True) for image in images]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        what = 'the body must be {"images": ["base64", ...]}'
        raise RequestError(f"{what}: {type(error).__name__}") from error
    for data in files:
        _check_bytes(data, limits)
    return files


def _check_bytes(data: bytes, limits: Limits) -> None:
    if len(data) > limits.bytes:
        raise RequestError(f"a picture has {len(data):,} bytes, {limits.bytes:,} are allowed", 413)
