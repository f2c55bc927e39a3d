"""Serves an aiohttp application from a thread of its own. Both HTTP ports of `serve` run in its process this way."""

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

BODY_BYTES = 8 << 20  # of a request: more than the longest prompt has
REQUEST_ID = "X-Request-Id"  # the header of an answer from which the access log takes the id


@contextmanager
def listening(
    app: web.Application, host: str, port: int, option: str, *, access_log: logging.Logger | None = None
) -> Iterator[None]:
    """Serve `app` until the block ends. The access log has one record at level INFO for each request.

    Raises UsageError, naming the command line's `option`, where the port cannot be used.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # of a handler whose client goes away
        shutdown_timeout=1.0,  # seconds that the handlers have at the end
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
            path=request.path,  # without the query string, which may hold anything
            status=response.status,
            bytes=response.body_length,
            duration_ms=round(time * 1e3, 1),
        )
        self.logger.info("access", extra=values)
