"""The page in a real browser: headless Chromium, told what to do over its own protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import ended_early
from tests.serving.conftest import Served, needs_triton
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.serving.triton.server import free_ports

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [needs_triton, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")]

PROMPT = "def binary_search("


@pytest.fixture(scope="module")
def page(served: Served, engines: Path) -> Iterator[str]:
    from trtllm_pt.serving.openai.app import OpenAIServer

    [port] = free_ports(1)
    with OpenAIServer(engines, "demo", f"127.0.0.1:{served.grpc}").listening("127.0.0.1", port):
        yield f"http://127.0.0.1:{port}/"


class Tab:
    """One page of a browser."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        self._number += 1
        call = {"expression": script, "awaitPromise": True, "returnByValue": True}
        await self._socket.send_json({"id": self._number, "method": "Runtime.evaluate", "params": call})
        while (answer := await self._socket.receive_json(timeout=30)).get("id") != self._number:
            pass
        return answer["result"]["result"].get("value")

    async def close(self) -> None:
        await self._socket.send_json({"id": 0, "method": "Page.close"})

    async def until(self, script: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not await self.run(script):
            assert time.monotonic() < deadline, await self.run("document.body.innerText")
            await asyncio.sleep(0.05)


@asynccontextmanager
async def browser(url: str, folder: Path) -> AsyncIterator[Tab]:
    import aiohttp

    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder}", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not (folder / "DevToolsActivePort").exists():
                assert time.monotonic() < deadline, "the browser did not start"
                await asyncio.sleep(0.1)
            port = (folder / "DevToolsActivePort").read_text().splitlines()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    [tab] = [tab for tab in json.loads(await answer.text()) if tab["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"]) as socket:
                    yield Tab(socket)
        finally:
            process.terminate()


TYPE = "document.getElementById('prompt').value = {prompt}; document.getElementById('max_tokens').value = {tokens};"
CLICK = "document.getElementById('{id}').click()"
WAITING = "document.getElementById('stop').disabled"
TEXT, FIGURES = ("document.getElementById('text').textContent", "document.getElementById('figures').textContent")


def test_a_person_types_a_prompt_and_watches_it_stream(
    page: str, served: Served, engines: Path, tmp_path: Path
) -> None:
    async def visit() -> tuple[list[str], str, str, str]:
        async with browser(page, tmp_path / "profile") as tab:
            await tab.until("document.title === 'demo'")
            await tab.run(TYPE.format(prompt=json.dumps(PROMPT), tokens=200))
            await tab.run(CLICK.format(id="write"))
            seen = []
            while not seen or not await tab.run(WAITING):
                seen.append(await tab.run(TEXT))
            last, shown = await tab.run(TEXT), await tab.run(FIGURES)
            body = await tab.run("document.body.innerText")
            await tab.run(TYPE.format(prompt=json.dumps("x " * 2000), tokens=4) + CLICK.format(id="write"))
            await tab.until("!!document.querySelector('.error')")
            refused = await tab.run(FIGURES)
            start = TYPE.format(prompt=json.dumps("def f("), tokens=1000) + CLICK.format(id="write")
            with ended_early(served, 1000):
                await tab.run(start)
                await tab.until(f"{TEXT}.length > 10")
                await tab.run(CLICK.format(id="stop"))
                await tab.until(f"{FIGURES} === 'stopped'")
            with ended_early(served, 1000):
                await tab.run(start)
                await tab.until(f"{TEXT}.length > 10")
                await tab.close()
            return [*seen, last], shown, body, refused

    seen, shown, body, refused = asyncio.run(visit())
    with LLM(engines) as llm:
        [wanted] = llm.generate([PROMPT], SamplingParams(max_tokens=200))
    assert seen[-1] == PROMPT + wanted.text
    assert len(set(seen)) > 3, "it came all at once"
    assert all(seen[-1].startswith(text) for text in seen)
    assert f"{len(wanted.token_ids)} tokens · TTFT " in shown and shown.endswith(" tokens/s")
    assert "All-reduces per token: 2 over 2 ranks; tensor parallelism would need 12" in body
    assert "A─F─A─F─A─F─●─A─F─A─F─A─F─●\n" in f"{body}\n"
    assert "must be shorter than max_seq_len (1024)" in refused
