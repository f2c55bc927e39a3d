"""HTTP applications in a thread of their own, beside whatever else this process does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from trtllm_pt.errors import UsageError

BODY_BYTES = 8 << 20  # of a request: more than the longest prompt has


@contextmanager
def listening(app: web.Application, host: str, port: int, option: str) -> Iterator[None]:
    """Serves until the end of the block. Raises UsageError, naming the option, where the port cannot be had."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    # A handler whose client goes away is cancelled; at the end all have a second.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
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
