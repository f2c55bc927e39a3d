"""What is no HTTP, or too long for it, gets an error of the port's own form, and leaves no traceback."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.serving.conftest import needs_triton
from tests.serving.in_process import engine_folder
from tests.text.tokenizers import TOKENIZERS
from trtllm_pt.serving.triton.server import free_ports

pytestmark = needs_triton
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
TOO_LONG = "the first line or a header of the request is too long"
REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "a long header": (
        HEAD + b"X: " + b"y" * 10_000 + b"\r\n\r\n",
        431,
        TOO_LONG,
    ),
    "a long name": (
        HEAD + b"y" * 10_000 + b": 1\r\n\r\n",
        431,
        TOO_LONG,
    ),
    "a long path": (
        b"GET /" + b"y" * 10_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
        431,
        TOO_LONG,
    ),
    "many headers": (
        HEAD + b"".join(b"X%d: 1\r\n" % i for i in range(300)) + b"\r\n",
        431,
        "the request has too many headers",
    ),
    "no method": (b"hello\r\n\r\n", 400, "this is not an HTTP request: Invalid method encountered"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "this is not an HTTP request: Received HTTPS"),
    "a header without a value": (HEAD + b"X\r\n\r\n", 400, "this is not an HTTP request: Invalid header token"),
    "a negative length": (
        HEAD + b"Content-Length: -5\r\n\r\n",
        400,
        "this is not an HTTP request: Invalid character in",
    ),
    "no chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400, "Invalid character in chunk size"),
    "no gzip": (
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        400,
        "the body cannot be read: Can not decode content-encoding: gzip",
    ),
}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Both ports of `serve`. Nothing is behind them."""
    from trtllm_pt.serving.openai.app import OpenAIServer
    from trtllm_pt.serving.triton.http_proxy import HttpProxy

    engines = engine_folder(tmp_path_factory.mktemp("http") / "engines", TOKENIZERS["byte level"])
    openai, proxy, nothing = free_ports(3)
    with ExitStack() as stack:
        stack.enter_context(OpenAIServer(engines, "demo", "nowhere").listening("127.0.0.1", openai))
        stack.enter_context(HttpProxy(f"http://127.0.0.1:{nothing}").listening("127.0.0.1", proxy))
        yield {"openai": openai, "http": proxy}


def answer(port: int, request: bytes) -> tuple[int, str]:
    """Status and body of the response to these bytes. The server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


@pytest.mark.parametrize("port", ["openai", "http"])
@pytest.mark.parametrize("name", REQUESTS)
def test_errors_have_the_form_of_the_port(
    ports: dict[str, int], caplog: pytest.LogCaptureFixture, port: str, name: str
) -> None:
    request, status, message = REQUESTS[name]
    found, body = answer(ports[port], request)
    error = json.loads(body)["error"]
    assert found == status
    assert message in (error["message"] if port == "openai" else error)
    if port == "openai":
        assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert not caplog.records


def test_a_failure_of_ours_has_it_too_and_is_logged(
    ports: dict[str, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtllm_pt.serving.openai import app

    monkeypatch.setattr(app, "json_object", lambda body: 1 / 0)
    status, body = answer(ports["openai"], HEAD + b"Content-Length: 2\r\n\r\n{}")
    error = json.loads(body)["error"]
    assert (status, error["message"], error["type"]) == (500, "the server failed on this request", "server_error")
    assert "ZeroDivisionError" in caplog.text
