"""What OpenAI's port says besides completions: its models, and which pages of other hosts may use it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.serving.conftest import needs_triton
from tests.serving.in_process import engine_folder
from tests.text.tokenizers import TOKENIZERS
from trtllm_pt.cli.app import cli
from trtllm_pt.serving.triton.server import free_ports

pytestmark = needs_triton
PAGE = "https://pages.example.com"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_folder(tmp_path_factory.mktemp("openai") / "engines", TOKENIZERS["byte level"])


@contextmanager
def serving(engines: Path, name: str = "demo", origins: tuple[str, ...] = ()) -> Iterator[str]:
    from trtllm_pt.serving.openai.app import OpenAIServer

    [port] = free_ports(1)
    with OpenAIServer(engines, name, "nowhere", origins).listening("127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


def ask(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> tuple[int, Message, bytes]:
    """Status, headers and body."""
    data = b"{}" if method == "POST" else None
    try:
        request = urllib.request.Request(url, data, dict(headers or {}), method=method)
        answer = urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize("name", ["demo", "org/model-1"])
def test_models(engines: Path, name: str) -> None:
    with serving(engines, name) as url:
        [listed] = json.loads(ask(f"{url}/v1/models")[2])["data"]
        assert listed["id"] == name
        status, _, body = ask(f"{url}/v1/models/{name}")
        assert (status, json.loads(body)) == (200, listed)
        status, _, body = ask(f"{url}/v1/models/other")
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (404, "not_found")
        assert error["message"] == f"model ('other') is not served here; the model is {name!r}"


PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


def test_no_page_of_another_host_may_use_the_port(engines: Path) -> None:
    with serving(engines) as url:
        for method, given, wanted in (("GET", {"Origin": PAGE}, 200), ("OPTIONS", PREFLIGHT, 405)):
            status, headers, _ = ask(f"{url}/v1/models", method, given)
            assert status == wanted
            assert not [name for name in headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("origins", [(PAGE, "http://other"), ("*",)])
def test_pages_that_are_named(engines: Path, origins: tuple[str, ...]) -> None:
    with serving(engines, origins=origins) as url:
        status, headers, _ = ask(f"{url}/v1/chat/completions", "OPTIONS", PREFLIGHT)
        assert status == 204
        assert headers["Access-Control-Allow-Origin"] == PAGE
        assert headers["Access-Control-Allow-Headers"] == "authorization, content-type"
        assert "POST" in headers["Access-Control-Allow-Methods"]
        for method, path, status in (("GET", "/v1/models", 200), ("POST", "/v1/completions", 400), ("GET", "/no", 404)):
            found, headers, _ = ask(url + path, method, {"Origin": PAGE})
            assert (found, headers["Access-Control-Allow-Origin"]) == (status, PAGE)
            assert (headers["Access-Control-Expose-Headers"], headers["Vary"]) == ("X-Request-Id", "Origin")
        assert "Access-Control-Allow-Origin" not in ask(f"{url}/v1/models")[1]


def test_pages_that_are_not_named(engines: Path) -> None:
    with serving(engines, origins=("http://other",)) as url:
        assert "Access-Control-Allow-Origin" not in ask(f"{url}/v1/models", headers={"Origin": PAGE})[1]
        assert ask(f"{url}/v1/models", "OPTIONS", PREFLIGHT)[0] == 405


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--allowed-origin", "example.com"), "'example.com' must be * or a scheme and a host"),
        (("--allowed-origin", "https://example.com/"), "'https://example.com/' must be * or a scheme and a host"),
        (("--openai-port", "0", "--served-model-name", "x"), "need OpenAI's endpoints: --openai-port is 0"),
    ],
)
def test_options_that_are_refused(engines: Path, options: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli, ["serve", str(engines), *options])
    assert done.exit_code != 0
    assert message in (done.output + str(done.exception)).replace("\n", " ")
