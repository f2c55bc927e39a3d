"""HTTP statuses come from the errors' codes, whatever their words are."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import ACTIVE, END, Stream, figures, post, tokens, until
from tests.serving.conftest import needs_triton
from trtllm_pt.serving.error_codes import HTTP_STATUS, ServedError, split_code, with_code
from trtllm_pt.serving.triton.server import free_ports

REWORDED = """
from trtllm_pt.serving.triton.models import engine

original = engine.error_response
engine.error_response = lambda message, code="invalid": original("words of no meaning", code)
TritonPythonModel = engine.TritonPythonModel
"""


@pytest.mark.parametrize("code", HTTP_STATUS)
def test_a_code_survives_what_triton_puts_before_it(code: Any) -> None:
    text = f"in ensemble 'ensemble', {with_code('it [queue_full] broke', code)}"
    assert split_code(text) == ("in ensemble 'ensemble', it [queue_full] broke", code)


@pytest.mark.parametrize("text", ["", "[invalid]x", "a [unknown]", "the queue is full", "[queue_full]"])
def test_a_text_without_a_code_has_the_default(text: str) -> None:
    assert split_code(text) == (text, None)
    assert ServedError.parse(text, "timed_out").code == "timed_out"


def test_tritons_own_errors_have_codes() -> None:
    said = "Failed to process the request(s) for model 'x_0_0', message: Stub process 'x_0_0' is not healthy."
    assert ServedError.parse(said).code == "unavailable"
    unloaded = "Request for unknown model: 'tensorrt_llm' has no available versions"
    assert ServedError.parse(unloaded).code == "unavailable"
    assert ServedError.parse("Exceeds maximum queue size").code == "queue_full"


BODIES = {
    '{"error": "generate expects model to produce exactly 1 response, use generate stream"}': 400,
    '{"error": "the queue is full [queue_full]"}': 503,
    '{"error": "words of another version"}': 400,
    '{"model_name": "m", "error": "an output tensor of this name"}': 200,
    '{"model_name": "m", "text_output": "x"}': 200,
}


@needs_triton
@pytest.mark.parametrize(("body", "status"), BODIES.items())
def test_an_error_that_triton_sends_with_status_200(body: str, status: int) -> None:
    from aiohttp import web

    from trtllm_pt.serving.http_thread import listening
    from trtllm_pt.serving.triton.http_proxy import HttpProxy

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="application/json")

    triton, proxy = free_ports(2)
    app = web.Application()
    app.router.add_post("/v2/models/m/generate", answer)
    with (
        listening(app, "127.0.0.1", triton, "--http-port", lambda status, text: web.Response(status=status, text=text)),
        HttpProxy(f"http://127.0.0.1:{triton}").listening("127.0.0.1", proxy),
    ):
        request = urllib.request.Request(f"http://127.0.0.1:{proxy}/v2/models/m/generate", b"{}")
        try:
            found = urllib.request.urlopen(request, timeout=10)
        except urllib.error.HTTPError as error:
            found = error
        with found:
            assert (found.status, found.read().decode()) == (status, body)


@pytest.fixture(scope="module")
def urls(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A server whose engine has other words for every error, behind both ports of `serve`."""
    from tests.serving.conftest import Served
    from trtllm_pt.serving.openai.app import OpenAIServer
    from trtllm_pt.serving.triton.http_proxy import HttpProxy
    from trtllm_pt.serving.triton.repository import write_repository
    from trtllm_pt.serving.triton.server import Address, Server

    root = tmp_path_factory.mktemp("reworded")
    write_repository(engines, root / "repository", max_queue_size=1)
    (root / "repository" / "tensorrt_llm" / "1" / "model.py").write_text(REWORDED)
    address = Address.free()
    http, openai = free_ports(2)
    with Server(root / "repository", address, root / "log") as server:
        server.wait_until_ready()
        with (
            HttpProxy(address.url).listening("127.0.0.1", http),
            OpenAIServer(engines, "demo", f"127.0.0.1:{address.grpc}").listening("127.0.0.1", openai),
        ):
            yield Served(engines, http, address.grpc, address.metrics), f"http://127.0.0.1:{openai}/v1/completions"


@needs_triton
def test_both_ports_answer_by_the_code(urls: tuple[Any, str]) -> None:
    served, openai = urls
    for model in ("ensemble", "tensorrt_llm_bls"):
        status, answer = post(served, model, {"text_input": "def", "max_tokens": 0})
        assert status == 400 and answer["error"].endswith("words of no meaning [invalid]")
    stream = Stream(served, "tensorrt_llm", tokens([5], 1020, end_id=END, num_return_sequences=5), name="full")
    body = {"text_input": "def", "max_tokens": 4}
    until(lambda: figures(served)[ACTIVE] == 5)
    for model in ("ensemble", "tensorrt_llm_bls"):
        for verb in ("generate", "generate_stream"):
            status, answer = post(served, model, body, verb)
            assert status == 503 and answer["error"].endswith("words of no meaning [queue_full]")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(openai, json.dumps({"prompt": "def"}).encode()), timeout=60)
    assert caught.value.code == 503
    error = json.loads(caught.value.read())["error"]
    assert (error["message"], error["code"]) == ("words of no meaning", "queue_full")
    stream.close()
