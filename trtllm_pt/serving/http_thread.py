"""Serves an aiohttp application from a thread of its own. Both HTTP ports of `serve` run this way, in its process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from trtllm_pt.errors import UsageError
from trtllm_pt.logs import fields
from trtllm_pt.serving.error_codes import HTTP_STATUS

BODY_BYTES = 8 << 20  # the limit for a request's body; the longest prompt is shorter
REQUEST_ID = "X-Request-Id"  # the response header from which the access log takes the request's id


ErrorResponse = Callable[[int, str], web.Response]  # makes a response of a status and a message
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Port:
    """The requests of a port that is served. Other threads may use it."""

    def __init__(self, app: web.Application, error_response: ErrorResponse) -> None:
        self._error_response = error_response
        self._running, self._ending = 0, False
        app.middlewares.append(self._counted)

    @property
    def busy(self) -> bool:
        """Whether a request is running: its client has not been sent the whole response."""
        return self._running > 0

    def refuse(self) -> None:
        """Answer 503 to all further requests, so that a proxy sends them elsewhere."""
        self._ending = True

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._ending:
            return self._error_response(HTTP_STATUS["unavailable"], "the server is ending")
        self._running += 1
        try:
            return await handler(request)
        finally:
            self._running -= 1


@contextmanager
def listening(
    app: web.Application,
    host: str,
    port: int,
    option: str,
    error_response: ErrorResponse,
    *,
    access_log: logging.Logger | None = None,
) -> Iterator[Port]:
    """Serve `app` until the block ends. Yields its port.

    option: the command line's name for the port, for messages. error_response: gives the port's errors their form.
    access_log: gets one record at level INFO per request. Raises UsageError, naming the option, if the port cannot be
    used.
    """
    served = Port(app, error_response)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # cancels a handler whose client disconnects
        shutdown_timeout=1.0,  # seconds that running handlers have to finish
    )

    async def start() -> asyncio.Server:
        await runner.setup()
        try:
            return await loop.create_server(
                lambda: _Connection(error_response, runner.server, loop=loop, access_log=access_log), host, port
            )
        except OSError as error:
            raise UsageError(f"{option} ({port}) cannot be used: {error.strerror}") from None

    async def stop() -> None:
        if server is not None:
            server.close()
        await runner.cleanup()

    server = None
    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield served
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


class _Connection(web.RequestHandler):
    """A client's connection. Its errors that no handler sees have the form of the port's other errors."""

    __slots__ = ("_error_response",)

    def __init__(
        self,
        error_response: ErrorResponse,
        server: Any,
        *,
        loop: asyncio.AbstractEventLoop,
        access_log: logging.Logger | None,
    ) -> None:
        self._error_response = error_response
        log: Any = access_log  # None, which aiohttp's types forbid: no log
        super().__init__(server, loop=loop, access_log=log, access_log_class=_AccessLogger)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a request that is not HTTP, or on which a handler failed unexpectedly."""
        if isinstance(exc, HttpProcessingError):
            status, message = _wrong_request(exc)
        else:
            super().handle_error(request, status, exc, message)  # logs it; raises if the response has begun
            message = "the server failed on this request"
        response = self._error_response(status, message)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log a bug. A body that cannot be read is none: aiohttp reads it to its end after the response to it."""
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)


def _wrong_request(error: HttpProcessingError) -> tuple[int, str]:
    """Return the status and the message for a request that aiohttp cannot read."""
    if isinstance(error, LineTooLong):
        return 431, "the first line or a header of the request is too long"
    if error.message.startswith("Too many headers"):
        return 431, "the request has too many headers"
    [line, *_] = error.message.splitlines() or [""]
    return 400, f"this is not an HTTP request: {line.rstrip(':')}"


def unreadable(error: web.RequestPayloadError) -> str:
    """Return the message for a body that does not have the form that its headers promise."""
    return f"the body cannot be read: {str(error).splitlines()[-1].strip()}"


class _AccessLogger(AbstractAccessLogger):
    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log an answered request. `time` is in seconds."""
        values = fields(
            request_id=response.headers.get(REQUEST_ID),
            client=request.remote,
            method=request.method,
            path=request.path,  # without the query string, which may contain user data
            status=response.status,
            bytes=response.body_length,
            duration_ms=round(time * 1e3, 1),
        )
        self.logger.info("access", extra=values)
