"""What every request passes: the token is asked for, and it is counted."""

from __future__ import annotations

import asyncio
import hmac
import time

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # without a token: the page, and what restarts servers asks


class Guard:
    """token: that requests must bear; None: all are let through
    metrics: counts them by route and status
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status, answered = time.monotonic(), 500, False

        async def watched(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
            await send(message)

        try:
            if self._allowed(scope):
                await self._app(scope, receive, watched)
            else:
                refusal = JSONResponse({"error": "this server asks for a token: Authorization: Bearer ..."}, 401)
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, watched)
        except asyncio.CancelledError:  # its time to end is over, and this request is not done
            if not answered:
                await JSONResponse({"error": "the server is stopping"}, 503)(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.monotonic() - start)

    def _allowed(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in OPEN:
            return True
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given, self._token.encode())
