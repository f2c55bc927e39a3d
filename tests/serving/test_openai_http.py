"""What OpenAI's port says besides completions: its models, and which pages of other hosts may use it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.serving.conftest import needs_triton
from tests.serving.in_process import engine_folder
from tests.text.tokenizers import TOKENIZERS
from trtllm_pt.cli.app import cli
from trtllm_pt.errors import UsageError
from trtllm_pt.serving.triton.server import free_ports

pytestmark = needs_triton
PAGE = "https://pages.example.com"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_folder(tmp_path_factory.mktemp("openai") / "engines", TOKENIZERS["byte level"])


@contextmanager
def serving(engines: Path, name: str = "demo", origins: tuple[str, ...] = (), key: str | None = None) -> Iterator[str]:
    from trtllm_pt.serving.openai.app import OpenAIServer

    [port] = free_ports(1)
    with OpenAIServer(engines, name, "nowhere", origins, key).listening("127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"


def ask(
    url: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
) -> tuple[int, Message, bytes]:
    """Status, headers and body."""
    data = json.dumps(body or {}).encode() if method == "POST" else None
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
        (("--openai-port", "0", "--api-key-file", "x"), "need OpenAI's endpoints: --openai-port is 0"),
        (("--api-key-file", "/nowhere"), "--api-key-file (/nowhere) cannot be read: No such file or directory"),
    ],
)
def test_options_that_are_refused(engines: Path, options: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli, ["serve", str(engines), *options])
    assert done.exit_code != 0
    assert message in (done.output + str(done.exception)).replace("\n", " ")


KEY = "sk-Zanzibar"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": KEY}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
    ],
)
def test_a_server_with_a_key(engines: Path, headers: dict[str, str], status: int) -> None:
    with serving(engines, key=KEY) as url:
        for path in ("/v1/models", "/engine"):
            found, answered, body = ask(url + path, headers=headers)
            assert found == status
            if status == 401:
                error = json.loads(body)["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
                assert "send the header 'Authorization: Bearer KEY'" in error["message"] and KEY not in error["message"]
                assert answered["WWW-Authenticate"] == "Bearer"
        assert ask(f"{url}/v1/completions", "POST", headers)[0] == (status if status == 401 else 400)
        assert ask(f"{url}/", headers=headers)[0] == 200
        assert ask(f"{url}/health", headers=headers)[0] == 503  # nothing is behind it


def test_pages_of_other_hosts_send_the_key_too(engines: Path) -> None:
    with serving(engines, origins=("*",), key=KEY) as url:
        assert ask(f"{url}/v1/completions", "OPTIONS", PREFLIGHT)[0] == 204
        status, headers, _ = ask(f"{url}/v1/models", headers={"Origin": PAGE})
        assert (status, headers["Access-Control-Allow-Origin"]) == (401, PAGE)


def test_openais_client_sends_the_key(engines: Path) -> None:
    openai = pytest.importorskip("openai", reason="no OpenAI client here: pip install -e '.[embedded,dev,serve]'")
    with serving(engines, key=KEY) as url:
        assert [m.id for m in openai.OpenAI(base_url=f"{url}/v1", api_key=KEY).models.list()] == ["demo"]
        with pytest.raises(openai.AuthenticationError, match="needs an API key") as caught:
            openai.OpenAI(base_url=f"{url}/v1", api_key="other").models.list()
        assert caught.value.code == "invalid_api_key"


def test_where_a_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trtllm_pt.serving.openai.api_key import VARIABLE, read_api_key

    assert read_api_key(None) is None
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv(VARIABLE, "other")
    assert read_api_key(file) == KEY
    monkeypatch.setenv(VARIABLE, "other")
    assert read_api_key(None) == "other"
    assert VARIABLE not in os.environ, "a process that we start would inherit it"
    for wrong in ("", " \n", "two words", "sk-é"):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=r"^--api-key-file must hold a key of printable ASCII") as caught:
            read_api_key(file)
        assert not wrong.strip() or wrong not in str(caught.value)
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read: it is not text"):
        read_api_key(file)


def test_with_a_key_the_network_reaches_no_port_of_triton(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if OpenAI's port, which would ask for it, is off."""
    from trtllm_pt.serving.openai.api_key import VARIABLE

    def stop(host: str, *_: Any) -> None:
        raise UsageError(host)

    monkeypatch.setattr("trtllm_pt.serving.triton.server.check_port", stop)
    for port in ("0", "9000"):
        monkeypatch.setenv(VARIABLE, KEY)
        done = CliRunner().invoke(cli, ["serve", str(engines), "--host", "0.0.0.0", "--openai-port", port])
        assert str(done.exception) == "127.0.0.1"
        assert VARIABLE not in os.environ


def test_tokenize(engines: Path) -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("Hello é").ids
    with serving(engines) as url:
        for asked, strings in ((False, None), (True, [tokenizer.id_to_token(token) for token in ids])):
            body = {"model": "demo", "prompt": "Hello é", "return_token_strs": asked}
            status, _, answer = ask(f"{url}/tokenize", "POST", body=body)
            wanted = {"count": len(ids), "max_model_len": 128, "tokens": ids, "token_strs": strings}
            assert (status, json.loads(answer)) == (200, wanted)
        status, _, answer = ask(f"{url}/detokenize", "POST", body={"tokens": ids})
        assert (status, json.loads(answer)) == (200, {"prompt": "Hello é"})


def test_tokenize_chats_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} end{% endif %}"
    chatty = engine_folder(tmp_path / "engines", tokenizer, tokenizer_config={"chat_template": template})
    messages = [{"role": "user", "content": "Hello"}]

    def tokens(url: str, **body: Any) -> list[int]:
        found: list[int] = json.loads(ask(f"{url}/tokenize", "POST", body=body)[2])["tokens"]
        return found

    with serving(chatty) as url:
        for text, fields in (
            ("Hello end", {"messages": messages}),
            ("Hello", {"messages": messages, "add_generation_prompt": False}),
            ("Hello", {"messages": messages, "continue_final_message": True}),
            ("Hello", {"prompt": "Hello", "add_special_tokens": False}),
        ):
            assert tokens(url, **fields) == tokenizer.encode(text, add_special_tokens=False).ids
        with_special = tokenizer.encode("Hello").ids
        assert tokens(url, prompt="Hello") == with_special
        assert tokens(url, messages=messages, add_generation_prompt=False, add_special_tokens=True) == with_special
        special = tokenizer.token_to_id("<end>")
        _, _, answer = ask(f"{url}/detokenize", "POST", body={"tokens": [special]})
        assert json.loads(answer)["prompt"] == "<end>"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("tokenize", {}, "must have either prompt or messages"),
        (
            "tokenize",
            {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
            "must have either prompt or messages",
        ),
        ("tokenize", {"prompt": ["x"]}, "prompt (['x']) must be a string"),
        ("tokenize", {"prompt": "x", "chat_template": "x"}, "chat_template is not supported"),
        ("tokenize", {"prompt": "x", "add_special_tokens": 1}, "add_special_tokens (1) must be true or false"),
        ("tokenize", {"prompt": "x", "model": "other"}, "model ('other') is not served here"),
        ("detokenize", {}, "tokens is missing"),
        ("detokenize", {"tokens": "x"}, "tokens ('x') must be a list"),
        ("detokenize", {"tokens": [5, 512]}, "token_ids[1] (512) must be a token id between 0 and 511"),
        ("detokenize", {"tokens": [5, "x"]}, "token_ids[1] ('x') must be a token id between 0 and 511"),
    ],
)
def test_what_is_wrong_in_them_is_named(engines: Path, path: str, body: dict[str, Any], message: str) -> None:
    with serving(engines) as url:
        status, _, answer = ask(f"{url}/{path}", "POST", body=body)
        assert status == (404 if "model" in body else 400)
        assert message in json.loads(answer)["error"]["message"]
