"""Serves an aiohttp application from a thread of its own. Both HTTP ports of `serve` run this way, in its process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from trtllm_pt.errors import UsageError
from trtllm_pt.logs import fields

BODY_BYTES = 8 << 20  # the limit for a request's body; the longest prompt is shorter
REQUEST_ID = "X-Request-Id"  # the response header from which the access log takes the request's id


@contextmanager
def listening(
    app: web.Application, host: str, port: int, option: str, *, access_log: logging.Logger | None = None
) -> Iterator[None]:
    """Serve `app` until the block ends.

    option: the command line's name for the port, for messages. access_log: gets one record at level INFO per request.
    Raises UsageError, naming the option, if the port cannot be used.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # cancels a handler whose client disconnects
        shutdown_timeout=1.0,  # seconds that running handlers have to finish
        access_log=access_log,
        access_log_class=_AccessLogger,
    )
    try:
        asyncio.run_coroutine_threadsafe(_start(runner, host, port, option), loop).result()
        yield
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _start(runner: web.AppRunner, host: str, port: int, option: str) -> None:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise UsageError(f"{option} ({port}) cannot be used: {error.strerror}") from None


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
