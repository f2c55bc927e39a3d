"""OpenAI's endpoints over the real server, through OpenAI's own client."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.serving.client import ended_early
from tests.serving.conftest import Served, needs_triton
from tests.serving.test_server import LENGTH, PROMPTS, full
from trtllm_pt.requests.messages import SamplingParams, TokenScore
from trtllm_pt.runtime.llm import LLM, RunResult
from trtllm_pt.serving.triton.server import free_ports

openai = pytest.importorskip("openai", reason="no OpenAI client here: pip install -e '.[embedded,dev,serve]'")
pytestmark = needs_triton
TOOLS_OF_HERMES = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}"
TEMPLATE = TOOLS_OF_HERMES + "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}def "
COUNT = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def url(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from trtllm_pt.serving.openai.app import OpenAIServer

    chatty = (
        tmp_path_factory.mktemp("chatty") / "demo"
    )  # the engines' config, with a tokenizer that has a chat template
    chatty.mkdir()
    shutil.copytree(served.engines / "tokenizer", chatty / "tokenizer")
    for name in ("config.json", "model.pt2"):
        shutil.copy(served.engines / name, chatty / name)
    (chatty / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    [port] = free_ports(1)
    with OpenAIServer(chatty, "demo", f"127.0.0.1:{served.grpc}").listening("127.0.0.1", port):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def alone(engines: Path) -> dict[str, RunResult]:
    """What each prompt gets without a server, greedily."""
    chat = "# user: sort a list\ndef "
    with LLM(engines) as llm:
        results = llm.generate([*PROMPTS, chat], SamplingParams(max_tokens=LENGTH))
    return dict(zip([*PROMPTS, "chat"], results, strict=True))


def test_completions(client: Any, alone: dict[str, RunResult]) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    for prompt in PROMPTS:
        answer = client.completions.create(model="demo", prompt=prompt, max_tokens=LENGTH, temperature=0)
        assert answer.choices[0].text == alone[prompt].text
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == LENGTH
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + LENGTH


def test_streamed_completions(client: Any, alone: dict[str, RunResult]) -> None:
    options = {"include_usage": True}

    def one(prompt: str) -> None:
        stream = client.completions.create(
            model="demo", prompt=prompt, max_tokens=LENGTH, temperature=0, stream=True, stream_options=options
        )
        parts = list(stream)
        assert "".join(part.choices[0].text for part in parts if part.choices) == alone[prompt].text
        assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "length"
        assert parts[-1].usage.completion_tokens == LENGTH

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, PROMPTS * 2))


def test_min_p_reaches_the_engine(client: Any, alone: dict[str, RunResult]) -> None:
    """With 1, only the likeliest token is left to draw."""
    asked = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": LENGTH, "temperature": 5.0, "seed": 1}
    assert client.completions.create(**asked).choices[0].text != alone[PROMPTS[0]].text
    answer = client.completions.create(**asked, extra_body={"min_p": 1})
    assert answer.choices[0].text == alone[PROMPTS[0]].text


def test_logit_bias(client: Any) -> None:
    """A bias of 100 makes a token certain, and one of -100 keeps it away; log-probs are of the logits without it."""
    asked = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 3, "temperature": 0, "logprobs": 2}
    ids = {
        client.completions.create(model="demo", prompt=[token], max_tokens=0, echo=True).choices[0].text: token
        for token in range(200, 210)
    }
    plain = client.completions.create(**asked).choices[0].logprobs
    for word, token in ids.items():
        found = client.completions.create(**asked, logit_bias={str(token): 100}).choices[0].logprobs
        assert found.tokens == [word] * 3
        assert {p for p in found.top_logprobs[0].values() if p > found.token_logprobs[0]} <= set(
            plain.top_logprobs[0].values()
        )


def test_cached_tokens(client: Any) -> None:
    prompt = list(range(100, 150))

    def cached(**fields: Any) -> tuple[int, int]:
        usage = client.completions.create(model="demo", prompt=prompt, max_tokens=1, **fields).usage
        assert usage.prompt_tokens == 50
        return usage.prompt_tokens_details.cached_tokens, usage.completion_tokens

    assert [cached(extra_body={"cache_salt": salt})[0] for salt in ("a", "a", "b")] == [0, 48, 0]
    assert cached(extra_body={"cache_salt": "a"}, n=2)[0] == 48
    assert cached(extra_body={"cache_salt": "a", "priority": -3})[0] == 48
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = list(
        client.completions.create(
            model="demo",
            prompt=prompt,
            max_tokens=3,
            stream=True,
            stream_options=options,
            extra_body={"cache_salt": "a"},
        )
    )
    assert {part.usage.prompt_tokens_details.cached_tokens for part in parts} == {48}
    assert parts[-1].usage.total_tokens == 53


def test_chat(client: Any, alone: dict[str, RunResult]) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": "sort a list"}], "temperature": 0}
    answer = client.chat.completions.create(**asked, max_completion_tokens=LENGTH)
    assert answer.choices[0].message.content == alone["chat"].text
    parts = list(client.chat.completions.create(**asked, max_tokens=LENGTH, stream=True))
    assert "".join(part.choices[0].delta.content for part in parts) == alone["chat"].text
    assert parts[0].choices[0].delta.role == "assistant"


def test_stop_strings_are_kept_out_and_free_the_slot(client: Any, served: Served, alone: dict[str, RunResult]) -> None:
    text = alone[PROMPTS[0]].text
    stop = text[5:9]
    asked = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 900, "temperature": 0, "stop": ["never", stop]}
    answer = client.completions.create(**asked)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    with ended_early(served, 900):
        parts = list(client.completions.create(**asked, stream=True))
        assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]


def test_several_prompts_and_choices(client: Any, alone: dict[str, RunResult]) -> None:
    asked = {"model": "demo", "prompt": PROMPTS[:2], "max_tokens": LENGTH, "temperature": 0, "echo": True}
    answer = client.completions.create(**asked, n=2)
    texts = [choice.text for choice in answer.choices]
    assert texts == [prompt + alone[prompt].text for prompt in PROMPTS[:2] for _ in range(2)]
    sampled = client.completions.create(model="demo", prompt=PROMPTS[0], max_tokens=16, n=3, seed=1)
    assert len({choice.text for choice in sampled.choices}) == 3
    again = client.completions.create(model="demo", prompt=PROMPTS[0], max_tokens=16, n=3, seed=1)
    assert [choice.text for choice in again.choices] == [choice.text for choice in sampled.choices]


def test_a_client_that_goes_away_frees_its_slot(client: Any, served: Served) -> None:
    asked = {"model": "demo", "prompt": "def f(", "max_tokens": 1000, "extra_body": {"ignore_eos": True}}
    with ended_early(served, 1000):
        stream = client.completions.create(**asked, stream=True)
        next(iter(stream))
        stream.close()
    with ended_early(served, 1000), pytest.raises(openai.APITimeoutError):
        client.completions.create(**asked, timeout=0.3)


def entries(found: Any) -> list[tuple[str, float | None, dict[str, float] | None]]:
    return list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))


@pytest.fixture(scope="module")
def scored(engines: Path) -> Iterator[tuple[LLM, list[RunResult]]]:
    """Prompts and their greedy outputs, with all log-probs, without a server."""
    wanted = SamplingParams(max_tokens=4, log_probs=True, prompt_log_probs=True, top_log_probs=3)
    with LLM(engines) as llm:
        yield llm, llm.generate(PROMPTS, wanted)


def expected(llm: LLM, prompt: str, result: RunResult, echo: bool) -> list[tuple[str, Any, Any]]:
    assert llm.tokenizer is not None
    words = [llm.tokenizer.decode([token]) for token in (*llm.encode(prompt), *result.token_ids)]
    scores = [*result.prompt_scores, *map(TokenScore, result.log_probs, result.top_log_probs)]
    found: list[tuple[str, Any, Any]] = [(words[0], None, None)]
    for word, score in zip(words[1:], scores, strict=True):
        own = pytest.approx(score.log_prob, abs=1e-6)
        top = {word: own}
        for token, p in score.top:  # parts of characters look alike
            top.setdefault(llm.tokenizer.decode([token]), pytest.approx(p, abs=1e-6))
        found.append((word, own, top))
    return found if echo else found[len(llm.encode(prompt)) :]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_of_completions(client: Any, scored: tuple[LLM, list[RunResult]], echo: bool, stream: bool) -> None:
    llm, results = scored
    asked = {"model": "demo", "max_tokens": 4, "temperature": 0, "logprobs": 3, "echo": echo, "stream": stream}
    for prompt, result in zip(PROMPTS, results, strict=True):
        answer = client.completions.create(prompt=prompt, **asked)
        parts = [part.choices[0] for part in answer] if stream else answer.choices
        found = [entry for part in parts for entry in entries(part.logprobs)]
        assert found == expected(llm, prompt, result, echo)
        text = "".join(part.text for part in parts)
        offsets = [offset for part in parts for offset in part.logprobs.text_offset]
        for (word, _, _), offset in zip(found, offsets, strict=True):
            assert "\ufffd" in word or text[offset : offset + len(word)] == word


def test_scoring_prompts_of_token_ids_alone(client: Any, scored: tuple[LLM, list[RunResult]]) -> None:
    """As evaluation tools do it: a list of lists of token ids, echoed, with no new token or with one."""
    llm, results = scored
    prompts = [list(llm.encode(prompt)) for prompt in PROMPTS]
    for most in (0, 1):
        answer = client.completions.create(model="demo", prompt=prompts, max_tokens=most, logprobs=3, echo=True)
        assert answer.usage.completion_tokens == most * len(prompts)
        for choice, prompt, result in zip(answer.choices, PROMPTS, results, strict=True):
            assert entries(choice.logprobs)[: len(llm.encode(prompt))] == expected(llm, prompt, result, True)[:-4]
            assert choice.finish_reason == "length" and len(choice.logprobs.tokens) == len(llm.encode(prompt)) + most
    [plain] = client.completions.create(model="demo", prompt="import os", max_tokens=0, echo=True).choices
    assert (plain.text, plain.logprobs) == ("import os", None)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_of_chats(client: Any, scored: tuple[LLM, list[RunResult]], stream: bool) -> None:
    llm, _ = scored
    assert llm.tokenizer is not None
    messages = [{"role": "user", "content": "sort a list"}]
    wanted = SamplingParams(max_tokens=4, log_probs=True, top_log_probs=2)
    [result] = llm.generate(["# user: sort a list\ndef "], wanted)
    asked = {"max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 2, "stream": stream}
    answer = client.chat.completions.create(model="demo", messages=messages, **asked)
    parts = [part.choices[0] for part in answer] if stream else answer.choices
    found = [token for part in parts for token in part.logprobs.content]
    assert [token.logprob for token in found] == pytest.approx(result.log_probs, abs=1e-6)
    for token, own, top in zip(found, result.token_ids, result.top_log_probs, strict=True):
        assert token.token == llm.tokenizer.decode([own])
        assert token.bytes in (None, list(token.token.encode()))
        assert [one.token for one in token.top_logprobs] == [llm.tokenizer.decode([id]) for id, _ in top]
        assert [one.logprob for one in token.top_logprobs] == pytest.approx([p for _, p in top], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("completions", b"{", 400, "the body is not JSON"),
        ("completions", b"[]", 400, "the body must be a JSON object"),
        ("completions", b'{"prompt": "x", "n": 1, "n": 2}', 400, "n is in the body more than once"),
        (
            "completions",
            b'{"prompt": "x", "stream": true, "stream_options": {"include_usage": true, "include_usage": false}}',
            400,
            "include_usage is in the body more than once",
        ),
        ("completions", {"prompt": ""}, 400, "prompt is empty"),
        ("completions", {}, 400, "prompt is missing"),
        ("completions", {"prompt": [1, 99999]}, 400, "token_ids[1] (99999) must be a token id"),
        ("completions", {"prompt": "x", "max_tokens": -1}, 400, "max_tokens (-1) must be a whole number at least 1"),
        ("completions", {"prompt": "x", "max_tokens": "many"}, 400, "max_tokens ('many') must be a whole number"),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature (-1) must be a number at least 0"),
        ("completions", {"prompt": "x", "temperature": float("nan")}, 400, "is not JSON: NaN is not a JSON number"),
        ("completions", {"prompt": "x", "top_p": 1.5}, 400, "top_p (1.5) must be a number above 0 and at most 1"),
        ("completions", {"prompt": "x", "top_k": -1}, 400, "top_k (-1) must be a whole number at least 0"),
        ("completions", b'{"prompt": "x", "presence_penalty": 1e400}', 400, "presence_penalty (inf) must be a finite"),
        ("completions", {"prompt": "x", "top_k": 2**40}, 400, "top_k (1099511627776) must be at most 2147483647"),
        ("completions", {"prompt": "x", "temperature": 10**400}, 400, "must be a number at least 0"),
        ("completions", {"prompt": "x", "min_p": 2}, 400, "min_p (2) must be a number between 0 and 1"),
        ("completions", {"prompt": [5, -1]}, 400, "token_ids[1] (-1) must be a token id between 0 and 4095"),
        ("completions", {"prompt": [2**40]}, 400, "token_ids[0] (1099511627776) must be a token id"),
        ("completions", {"prompt": [[[1]]]}, 400, "prompt ([[1]]) must be a string or a list of token ids"),
        ("completions", {"prompt": 5}, 400, "prompt (5) must be a string or a list"),
        ("completions", {"prompt": "\ud800"}, 400, "prompt contains an unpaired surrogate"),
        ("completions", {"prompt": "x" * 5_000_000}, 400, "prompt has 5000000 bytes, but must have at most"),
        ("completions", {"prompt": "x", "n": 0}, 400, "n (0) must be at least 1"),
        ("completions", {"prompt": "x", "n": 10**12}, 400, "n (1000000000000) times 1 prompts must be at most 1024"),
        ("completions", {"prompt": ["x"] * 1025}, 400, "n (1) times 1025 prompts must be at most 1024 outputs"),
        ("completions", b"[" * 100_000, 400, "the body is not JSON"),
        ("completions", {"prompt": "x", "logprobs": 21}, 400, "logprobs (21) must be between 0 and 20"),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens (0) must be a whole number at least 1"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2},
            400,
            "top_logprobs (2) needs logprobs to be true",
        ),
        ("completions", {"prompt": "x", "model": "gpt"}, 404, "model ('gpt') is not served here; the model is 'demo'"),
        ("completions", {"prompt": "x " * 2000}, 400, "must be shorter than max_seq_len (1024)"),
        ("completions", b" " * 100_000_000, 413, "Request Entity Too Large"),
        ("chat/completions", {"messages": []}, 400, "messages is missing or empty"),
        ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0] must have a content"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_named(url: str, path: str, body: Any, status: int, message: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", data), timeout=60)
    assert caught.value.code == status
    assert message in json.loads(caught.value.read())["error"]["message"]


def test_huge_max_tokens_are_cut_to_what_the_engine_holds(client: Any) -> None:
    asked = {"model": "demo", "prompt": [5] * 1000, "max_tokens": 10**12, "extra_body": {"ignore_eos": True}}
    assert client.completions.create(**asked).usage.completion_tokens == 24


def test_health(url: str) -> None:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=10) as answer:
        assert (answer.status, json.loads(answer.read())) == (200, {"status": "ok"})


def test_a_full_queue_is_503(client: Any, served: Served) -> None:
    with full(served):
        with pytest.raises(openai.InternalServerError, match="the queue is full") as caught:
            client.completions.create(model="demo", prompt="def f(", max_tokens=4)
        assert caught.value.status_code == 503
    assert client.completions.create(model="demo", prompt="def f(", max_tokens=4).choices[0].text


def test_guides_and_tools_on_the_real_server(client: Any) -> None:
    """The model itself knows neither JSON nor tools: the masks of the ranks' engine make it write both."""
    chat = {"model": "demo", "messages": [{"role": "user", "content": "how many?"}], "temperature": 1, "seed": 5}
    schema = {"type": "json_schema", "json_schema": {"name": "count", "schema": COUNT}}
    [choice] = client.chat.completions.create(**chat, max_tokens=60, response_format=schema).choices
    jsonschema.validate(json.loads(choice.message.content), COUNT)
    tools = [{"type": "function", "function": {"name": "count", "parameters": COUNT}}]
    one_call = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    [choice] = client.chat.completions.create(**chat, max_tokens=200, **one_call).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.function.name == "count"
    jsonschema.validate(json.loads(call.function.arguments), COUNT)
    extra = {"structured_outputs": {"regex": "a{3}|b{4}"}}
    [choice] = client.completions.create(model="demo", prompt="x", max_tokens=9, extra_body=extra).choices
    assert choice.text in ("aaa", "bbbb")
