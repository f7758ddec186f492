"""The server's addresses, as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse

from ..deploy.fast_conformer import FastConformer
from ..version import __version__
from . import kserve
from .guard import Guard
from .metrics import CONTENT_TYPE
from .page import page
from .refusals import LEAST, refuse_in_a_sentence
from .service import Options, Service

BODY = {  # of OpenAPI
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"picture": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                }
            },
        },
    }
}


def create_app(model: FastConformer, options: Options | None = None) -> FastAPI:
    """model: compiled or loaded, that reads pictures and returns scores. Raises ArgumentError for another.

    A process may be forked between this and the application's start.
    """
    options = options or Options()
    service = Service(model, options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="conformer_fast", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    app.add_middleware(Guard, token=options.token, metrics=service.metrics)
    refuse_in_a_sentence(app, service.metrics)
    _add_predict(app, service)
    _add_kserve(app, service)

    text, headers = page()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def at_the_root() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times in Prometheus' format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return app


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", openapi_extra=BODY)
    async def predict(
        request: Request, topk: Annotated[int, Query(ge=LEAST["topk"], description="classes of each picture")] = 5
    ) -> dict[str, Any]:
        """The likeliest classes of one or several pictures, by both heads together and by each alone."""
        start = time.monotonic()
        found = await service.classify(request, topk)
        return {
            "engine": service.digest,
            "predictions": [asdict(result) for result in found],
            "milliseconds": round(1e3 * (time.monotonic() - start), 3),
        }

    @app.post("/v1/explain", openapi_extra=BODY)
    async def explain(
        request: Request,
        index: Annotated[
            int | None, Query(alias="class", ge=LEAST["class"], description="default: the likeliest")
        ] = None,
    ) -> dict[str, Any]:
        """Where in one picture each branch looks: maps over the part of it that the model reads."""
        start = time.monotonic()
        found = await service.explain(request, index)
        return {
            "engine": service.digest,
            "class": found.classified,
            "crop": found.crop,
            "maps": found.maps,
            "milliseconds": round(1e3 * (time.monotonic() - start), 3),
        }


def _add_kserve(app: FastAPI, service: Service) -> None:
    """The addresses of the KServe v2 protocol."""

    @app.head("/v2/health/live", include_in_schema=False)
    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.head("/v2/health/ready", include_in_schema=False)
    @app.get("/v2/health/ready")
    async def ready(response: Response) -> dict[str, bool]:
        """Once every size of batch has run."""
        response.status_code = 200 if service.ready else 503
        return {"ready": service.ready}

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "conformer_fast", "version": __version__, "extensions": kserve.EXTENSIONS}

    async def model_ready(response: Response, name: str, version: str = kserve.VERSION) -> dict[str, Any]:
        kserve.check(name, version)
        return await ready(response)

    async def model_metadata(name: str, version: str = kserve.VERSION) -> dict[str, Any]:
        kserve.check(name, version)
        return kserve.metadata(service.model.config.in_channels, service.shapes)

    async def infer(request: Request, name: str, version: str = kserve.VERSION) -> Response:
        """Tensors to tensors: images, normalized or uint8, to the model's outputs."""
        kserve.check(name, version)
        return await service.infer(request)

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.get(path)(model_metadata)
        app.get(f"{path}/ready")(model_ready)
        app.post(f"{path}/infer")(infer)
