"""A port that is asked to end: new requests are refused, and the running one is answered."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from trtllm_pt.serving.direct_http import open_directly
from trtllm_pt.serving.triton.server import free_ports

web = pytest.importorskip("aiohttp.web", reason="no aiohttp here: pip install -e '.[embedded,dev,serve]'")


def test_a_port_refuses_new_requests_and_counts_the_running_one() -> None:
    from trtllm_pt.serving.http_thread import listening

    begun, may_end = threading.Event(), threading.Event()

    async def answer(_: web.Request) -> web.Response:
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, may_end.wait)
        return web.Response(text="whole")

    app = web.Application()
    app.router.add_get("/", answer)
    [number] = free_ports(1)
    url = f"http://127.0.0.1:{number}/"

    def error(status: int, message: str) -> web.Response:
        return web.json_response({"error": message}, status=status)

    with listening(app, "127.0.0.1", number, "--http-port", error) as port, ThreadPoolExecutor() as pool:
        assert not port.busy
        running = pool.submit(lambda: open_directly(url).read())
        begun.wait(10)
        port.refuse()
        with pytest.raises(urllib.error.HTTPError) as refused:
            open_directly(url)
        assert refused.value.code == 503 and json.load(refused.value) == {"error": "the server is ending"}
        assert port.busy
        may_end.set()
        assert running.result() == b"whole"
    assert not port.busy
