"""Cross-origin requests (CORS): which web pages of other hosts may use OpenAI's endpoints in a browser."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aiohttp import web

from trtllm_pt.serving.http_thread import REQUEST_ID

ANY = "*"
_CACHE_SECONDS = "86400"  # how long a browser may remember the answer to a preflight request


def allow_origins(app: web.Application, origins: Collection[str]) -> None:
    """Let pages of these origins use an application; `*` stands for all origins."""

    @web.middleware
    async def preflight(request: web.Request, handler: Any) -> web.StreamResponse:
        """Answer a browser that asks whether it may send a request."""
        asked = "Access-Control-Request-Method" in request.headers
        if request.method == "OPTIONS" and asked and _allowed(request, origins):
            return web.Response(
                status=204,
                headers={
                    "Access-Control-Allow-Methods": "GET, POST",
                    "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", ANY),
                    "Access-Control-Max-Age": _CACHE_SECONDS,
                },
            )
        answer: web.StreamResponse = await handler(request)
        return answer

    async def name_origin(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Vary"] = "Origin"
        if _allowed(request, origins):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = REQUEST_ID

    app.middlewares.insert(0, preflight)
    app.on_response_prepare.append(name_origin)


def _allowed(request: web.Request, origins: Collection[str]) -> bool:
    return "Origin" in request.headers and (ANY in origins or request.headers["Origin"] in origins)
