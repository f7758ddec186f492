"""What a client sent, as bytes of pictures: in memory, and no more of it than is allowed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..errors import shown

UPLOAD = 60  # seconds for a request's body to come
SPARE = 20  # signs of JSON beside those of the pictures

Count = Callable[[int], None]  # is told of each part's bytes, and raises RequestError if the server has too many


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

    @property
    def of_all_requests(self) -> int:
        """Bytes that are in the server at a time."""
        return 40 * self.bytes


class _InMemory(MultiPartParser):
    """Starlette's would write parts beyond a megabyte to the disk."""

    spool_max_size = 0  # of SpooledTemporaryFile: no limit


async def pictures_of(request: Request, limits: Limits, count: Count) -> list[bytes]:
    """The files of one or several pictures: a form's parts, a raw body, or {"images": [base64]} as JSON.

    Raises RequestError for a body that is none of these, or is over the limits.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with _in_time():
            files = await _parts(request, limits, count)
    elif kind == "application/json":
        body = await body_of(request, limits.of_a_request, count)
        files = await asyncio.to_thread(_decoded, body, limits)
    elif kind == "application/x-www-form-urlencoded":
        raise RequestError("a form must be multipart/form-data; with curl: -F picture=@FILE", 415)
    else:
        files = [await body_of(request, limits.bytes, count)]
    if not any(files):
        raise RequestError("the request has no picture; send its file as the body, in a form or as base64 in JSON")
    if len(files) > limits.pictures:
        raise RequestError(f"the request has {len(files)} pictures, {limits.pictures} are allowed", 413)
    return files


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(UPLOAD):
            yield
    except TimeoutError as error:
        raise RequestError(f"the request did not come within {UPLOAD} s", 408, "slow") from error


async def _limited(request: Request, most: int, count: Count) -> AsyncGenerator[bytes, None]:
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise RequestError(f"the request is packed by {shown(encoding)!r}; send it as it is", 415)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise RequestError(f"the request has over {most:,} bytes, the most that is allowed", 413)
        count(len(chunk))
        yield chunk


async def body_of(request: Request, most: int, count: Count) -> bytes:
    """Raises RequestError for one of more bytes, and for one that does not come."""
    async with _in_time():
        return b"".join([chunk async for chunk in _limited(request, most, count)])


async def _parts(request: Request, limits: Limits, count: Count) -> list[bytes]:
    body = _limited(request, limits.of_a_request, count)
    parser = _InMemory(request.headers, body, max_files=limits.pictures, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many") else 400
        raise RequestError(f"the form cannot be read: {error.message}", status) from error
    except UnicodeError as error:  # of a charset that it names
        raise RequestError("the form cannot be read: its charset is none") from error
    try:
        files = [await part.read() for _, part in form.multi_items() if not isinstance(part, str)]
    finally:
        await form.close()
    for data in files:
        _check_bytes(data, limits)
    return files


def _decoded(body: bytes, limits: Limits) -> list[bytes]:
    what = 'the body must be {"images": ["base64", ...]}'
    if any(body.count(sign) > most for sign, most in ((b"[", 1), (b"{", 1), (b",", limits.pictures + SPARE))):
        raise RequestError(f"{what}, of {limits.pictures} at most")  # parsing what else it is may take long
    try:
        images = json.loads(body)["images"]
        if not isinstance(images, list):
            raise RequestError(what)
        files = [base64.b64decode(image, validate=True) for image in images]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(what) from error
    for data in files:
        _check_bytes(data, limits)
    return files


def _check_bytes(data: bytes, limits: Limits) -> None:
    if len(data) > limits.bytes:
        raise RequestError(f"a picture has {len(data):,} bytes, {limits.bytes:,} are allowed", 413)
