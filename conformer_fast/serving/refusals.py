"""What goes wrong, as a client is told it: one sentence as {"error": ...}, never a traceback."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import ConformerFastError, shown
from .batcher import StoppingError
from .metrics import Metrics
from .reading import RequestError

GONE = 499  # as nginx logs a client that went away; nobody reads it
MOST_LETTERS = 1000  # of a sentence
LEAST = {"topk": 1, "class": 0}  # of the numbers in an address


def refuse_in_a_sentence(app: FastAPI, metrics: Metrics) -> None:
    """Every error of a request is counted by its kind and answered."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        status, kind, sentence = _told(error)
        metrics.failures.labels(kind).inc()
        headers = {**(getattr(error, "headers", None) or {}), **({"Retry-After": "1"} if status == 503 else {})}
        return JSONResponse({"error": shown(sentence, MOST_LETTERS)}, status, headers)

    errors = (
        RequestError,
        StoppingError,
        ClientDisconnect,
        RequestValidationError,
        HTTPException,
        ConformerFastError,
        Exception,  # which the server logs too
    )
    for error in errors:
        app.add_exception_handler(error, refused)


def _told(error: Exception) -> tuple[int, str, str]:
    """The status, the kind for the metrics, and the sentence."""
    match error:
        case RequestError():
            return error.status, error.kind, str(error)
        case StoppingError():
            return 503, "stopping", str(error)
        case ClientDisconnect():
            return GONE, "gone", "the client went away"
        case RequestValidationError():
            first = error.errors()[0]
            name, given = first["loc"][-1], first["input"]
            return 422, "request", f"{name} must be a whole number, at least {LEAST[name]}, got {given!r}"
        case HTTPException():
            return error.status_code, "request", f"{error.detail}; /docs lists what there is"
        case ConformerFastError():
            return 500, "model", str(error)
    return 500, "server", "the server failed; what happened is in its log"
