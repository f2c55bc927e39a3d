"""Where texts begin and end, at every door, with every kind of tokenizer. Nothing is compiled: see in_process.py."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.serving.conftest import needs_triton
from tests.serving.in_process import Scripted, Triton, engine_folder, text_inputs, triton_of
from tests.text.tokenizers import CASES, Case
from trtllm_pt.cli.app import cli
from trtllm_pt.requests.messages import Request, SamplingParams
from trtllm_pt.runtime import llm as llm_module
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.serving.triton.server import free_ports

pytestmark = needs_triton
CHAT = {"chat_template": "{{ messages[0].content }}"}


class World:
    """All doors to an engine that gives `answer` to every prompt, and then the token `<end>`."""

    def __init__(self, case: Case, triton: Triton, engines: Path, url: str) -> None:
        self.case, self.triton, self.engines, self.url = case, triton, engines, url
        self.answer = case.answer

    def of(self, request: Request) -> tuple[int, ...]:
        return self.answer

    @contextmanager
    def answering(self, tokens: tuple[int, ...]) -> Iterator[None]:
        """The engine gives these tokens in the block."""
        before, self.answer = self.answer, tokens
        yield
        self.answer = before

    def openai(self, kind: str, **fields: Any) -> tuple[str, str, int]:
        """Text, finish reason and number of tokens of the only choice."""
        body = json.dumps({"temperature": 0, "max_tokens": 50, **fields}).encode()
        with urllib.request.urlopen(f"{self.url}/v1/{kind}", body, timeout=60) as response:
            lines = response.read().decode().splitlines()
        if not fields.get("stream"):
            [answer] = map(json.loads, lines)
            [choice] = answer["choices"]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            return text, choice["finish_reason"], answer["usage"]["completion_tokens"]
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        texts = [choice["delta"]["content"] if "delta" in choice else choice["text"] for choice in choices]
        return "".join(texts), choices[-1]["finish_reason"], events[-1]["usage"]["completion_tokens"]

    def model(self, name: str, **fields: Any) -> tuple[str, int]:
        """Text and number of tokens of the only output of a Triton model."""
        given = {"text_input": self.case.prompt, "max_tokens": 50, "return_num_output_tokens": True, **fields}
        parts = list(self.triton.ask(name, text_inputs(**given)))
        text = b"".join(part["text_output"][0] for part in parts).decode()
        return text, sum(int(part["num_output_tokens"].item()) for part in parts if "num_output_tokens" in part)

    def llm(self, stream: bool, **fields: Any) -> tuple[str, str, int]:
        others = {name: fields.pop(name) for name in ("stop", "skip_special_tokens") if name in fields}
        with LLM(self.engines) as llm:
            sampling = SamplingParams(**{"max_tokens": 50, **fields})
            if stream:
                *pieces, result = llm.stream(self.case.prompt, sampling, **others)
                assert "".join(pieces) == result.text
            else:
                [result] = llm.generate([self.case.prompt], sampling, **others)
        return result.text, result.finish_reason, len(result.token_ids)


@contextmanager
def doors(case: Case, root: Path, *end_tokens: str) -> Iterator[World]:
    from trtllm_pt.serving.openai.app import OpenAIServer

    ends = [case.tokenizer.token_to_id(token) for token in end_tokens]
    engines = engine_folder(root / "engines", case.tokenizer, ends, tokenizer_config=CHAT)
    [port] = free_ports(1)
    found: list[World] = []
    with pytest.MonkeyPatch.context() as patch, triton_of(engines, lambda r: found[0].of(r), root) as triton:
        patch.setattr(llm_module, "start_runtime", lambda folder, manifest, *_: Scripted(found[0].of, manifest.limits))
        with OpenAIServer(engines, "demo", "nowhere").listening("127.0.0.1", port):
            found.append(World(case, triton, engines, f"http://127.0.0.1:{port}"))
            yield found[0]


@pytest.fixture(scope="module", params=CASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with doors(CASES[request.param], tmp_path_factory.mktemp("edges"), "<end>") as found:
        yield found


STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def asked(world: World, kind: str, stream: bool) -> dict[str, Any]:
    prompt = world.case.prompt
    given = {"prompt": prompt} if kind == "completions" else {"messages": [{"role": "user", "content": prompt}]}
    return {**given, "stream": stream} | ({"stream_options": {"include_usage": True}} if stream else {})


@STREAMED
@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
def test_openai_gives_the_space_after_the_prompt(world: World, kind: str, stream: bool) -> None:
    text, reason, tokens = world.openai(kind, **asked(world, kind, stream))
    assert (text, reason, tokens) == (world.case.text, "stop", len(world.case.answer))


@STREAMED
def test_echo(world: World, stream: bool) -> None:
    given = asked(world, "completions", stream)
    assert world.openai("completions", **given, echo=True)[0] == world.case.prompt + world.case.text
    given["prompt"] = world.case.tokenizer.encode(world.case.prompt).ids
    assert world.openai("completions", **given, echo=True)[0] == world.case.prompt + world.case.text


@STREAMED
def test_llm(world: World, stream: bool) -> None:
    assert world.llm(stream) == (world.case.text, "end_id", len(world.case.answer))


def test_run(world: World) -> None:
    done = CliRunner().invoke(cli, ["run", str(world.engines), world.case.prompt])
    assert done.stdout == world.case.prompt + world.case.text + "\n"
    several = CliRunner().invoke(cli, ["run", str(world.engines), world.case.prompt, world.case.prompt])
    assert several.stdout.count(world.case.prompt + world.case.text + "\n") == 2


@STREAMED
@pytest.mark.parametrize("name", ["tensorrt_llm_bls", "ensemble"])
def test_text_models(world: World, name: str, stream: bool) -> None:
    answer = world.case.answer
    if name == "ensemble" and stream:  # which has only what a token shows alone
        answer = tuple(token for token in answer if "\ufffd" not in one(world.case, token))
    with world.answering(answer):
        assert world.model(name, stream=stream) == (continued(world.case, answer), len(answer))


def one(case: Case, token: int) -> str:
    """The text of a token alone; a single byte's counts as broken."""
    piece = case.tokenizer.id_to_token(token)
    return "\ufffd" if piece.startswith("<0x") else case.tokenizer.decode([token])


def continued(case: Case, answer: tuple[int, ...]) -> str:
    """What transformers would say: the text of prompt and answer without that of the prompt."""
    prompt = case.tokenizer.encode(case.prompt).ids
    return case.tokenizer.decode([*prompt, *answer]).removeprefix(case.tokenizer.decode(prompt))


def tokens_until(case: Case, text: str) -> int:
    """The number of the answer's first tokens that have the text."""
    return next(n for n in range(len(case.answer) + 1) if text in continued(case, case.answer[:n]))


def test_text_models_with_the_prompt(world: World) -> None:
    whole = world.case.prompt + world.case.text
    assert world.model("tensorrt_llm_bls", exclude_input_in_output=False)[0] == whole
    found = world.model("ensemble", exclude_input_in_output=False)[0]
    starts_are_marked = world.case.tokenizer.encode("a").tokens[0] == "<s>"
    assert found == whole or (not starts_are_marked and found == " " + whole)


@STREAMED
def test_stop_strings_with_a_space(world: World, stream: bool) -> None:
    first, last = world.case.text.split(" ")[1], " end"
    for stop, wanted in ((" " + first, ""), (last, world.case.text.removesuffix(last))):
        for kind in ("completions", "chat/completions"):
            assert world.openai(kind, **asked(world, kind, stream), stop=stop)[:2] == (wanted, "stop")
        assert world.llm(stream, stop=[stop])[:2] == (wanted, "stop_words")
        assert world.model("tensorrt_llm_bls", stream=stream, stop_words=[stop])[0] == wanted + stop


@STREAMED
def test_stop_strings_that_are_part_of_the_text(world: World, stream: bool) -> None:
    whole = world.case.text
    first = " " + whole.split(" ")[1]
    for stop, wanted in ((first, first), (" end", whole)):
        for kind in ("completions", "chat/completions"):
            found = world.openai(kind, **asked(world, kind, stream), stop=stop, include_stop_str_in_output=True)
            assert found[:2] == (wanted, "stop")
        assert world.llm(stream, stop=[stop], include_stop_words=True)[:2] == (wanted, "stop_words")


@STREAMED
def test_further_tokens_that_end_the_text(world: World, stream: bool) -> None:
    """They are not part of it, also where stop strings are."""
    answer = world.case.answer
    token = answer[-1]
    until = answer.index(token)
    wanted = continued(world.case, answer[:until])
    for kind in ("completions", "chat/completions"):
        for fields in ({}, {"include_stop_str_in_output": True}, {"ignore_eos": True}):
            found = world.openai(kind, **asked(world, kind, stream), stop_token_ids=[token], **fields)
            assert found == (wanted, "stop", until)
    assert world.llm(stream, stop_token_ids=(token,)) == (wanted, "end_id", until)


@STREAMED
def test_special_tokens_show_where_asked_for(world: World, stream: bool) -> None:
    end = world.case.tokenizer.token_to_id("<end>")
    answer = (world.case.answer[-1], end, world.case.answer[-1])
    for skip in (True, False):
        decoded = world.case.tokenizer.decode(answer, skip_special_tokens=skip)
        assert ("<end>" in decoded) is not skip
        with world.answering(answer):
            for kind in ("completions", "chat/completions"):
                given = asked(world, kind, stream) | {"max_tokens": 3, "ignore_eos": True}
                text, _, tokens = world.openai(kind, **given, skip_special_tokens=skip)
                assert (text.strip(), tokens) == (decoded.strip(), 3)
            fields = {"max_tokens": 3, "end_id": -1, "skip_special_tokens": skip}
            assert world.llm(stream, **fields)[0].strip() == decoded.strip()


@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
def test_usage_in_every_event(world: World, kind: str) -> None:
    body = asked(world, kind, True) | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    request = json.dumps({"temperature": 0, "max_tokens": 50, **body}).encode()
    with urllib.request.urlopen(f"{world.url}/v1/{kind}", request, timeout=60) as response:
        lines = response.read().decode().splitlines()
    *events, last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    prompt = len(world.case.tokenizer.encode(world.case.prompt, add_special_tokens=kind == "completions").ids)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[0] < counts[-1] == len(world.case.answer)
    assert {event["usage"]["prompt_tokens"] for event in events} == {prompt}
    assert last["usage"] == events[-1]["usage"] and last["choices"] == []


def test_words_with_a_space_in_the_ensemble(world: World) -> None:
    """There a word is found by its tokens: those that it has within a text."""
    word = " " + world.case.text.split(" ")[1]
    if world.case.tokenizer.token_to_id("Ġ") is None:  # the answer of the others has the tokens that encoding gives
        assert world.model("ensemble", stop_words=[word])[0] == word


@STREAMED
def test_a_stop_string_that_the_last_allowed_token_completes(world: World, stream: bool) -> None:
    most = len(world.case.answer)
    wanted = world.case.text.removesuffix(" end")
    for kind in ("completions", "chat/completions"):
        found = world.openai(kind, **asked(world, kind, stream) | {"max_tokens": most}, stop=" end")
        assert found == (wanted, "stop", most)
        assert world.openai(kind, **asked(world, kind, stream) | {"max_tokens": most})[1] == "length"
    assert world.llm(stream, stop=[" end"], max_tokens=most) == (wanted, "stop_words", most)
    assert world.model("tensorrt_llm_bls", stream=stream, stop_words=[" end"], max_tokens=most)[0] == wanted + " end"


@STREAMED
def test_a_stop_string_that_only_the_end_shows(world: World, stream: bool) -> None:
    """A run of single bytes is decoded when it is over: here when the output is."""
    text = world.case.text
    wanted = text[: text.index("é")]
    most = tokens_until(world.case, "é")
    for kind in ("completions", "chat/completions"):
        found = world.openai(kind, **asked(world, kind, stream) | {"max_tokens": most}, stop="é")
        assert found == (wanted, "stop", most)
    assert world.llm(stream, stop=["é"], max_tokens=most) == (wanted, "stop_words", most)
    assert world.model("tensorrt_llm_bls", stream=stream, stop_words=["é"], max_tokens=most)[0] == wanted + "é"


@STREAMED
def test_min_tokens_hold_against_stop_strings(world: World, stream: bool) -> None:
    """A stop string ends the text only if a token after the first min_tokens completes it."""
    stop = world.case.text.split(" ")[1]
    first = tokens_until(world.case, stop)
    for least, wanted in ((first, world.case.text), (first - 1, " ")):
        for kind in ("completions", "chat/completions"):
            found = world.openai(kind, **asked(world, kind, stream), stop=stop, min_tokens=least)
            assert found[:2] == (wanted, "stop")
        assert world.llm(stream, stop=[stop], min_tokens=least)[0] == wanted
        with_stop = wanted if wanted == world.case.text else wanted + stop
        assert world.model("tensorrt_llm_bls", stream=stream, stop_words=[stop], min_tokens=least)[0] == with_stop


SHOWN, SPECIAL = "d", "<unk>"  # end tokens beside <end>: one has a text, and one has none


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A model with three end tokens."""
    with doors(CASES["byte fallback"], tmp_path_factory.mktemp("ends"), "<end>", SHOWN, SPECIAL) as found:
        yield found


@pytest.fixture(params=["embedded", "tensorrt_llm"])
def engine_kind(request: pytest.FixtureRequest, several: World, monkeypatch: pytest.MonkeyPatch) -> str:
    """TensorRT-LLM's backend does not know that they are end tokens: it returns them, like every stop word."""
    if request.param == "tensorrt_llm":
        monkeypatch.setattr(several.triton.models["tensorrt_llm"], "_further_ends", set())
    return request.param


@STREAMED
@pytest.mark.parametrize("token", [SHOWN, SPECIAL])
@pytest.mark.parametrize("most", [0, 50], ids=["the last allowed", "before the last allowed"])
def test_every_end_token_ends(several: World, engine_kind: str, token: str, most: int, stream: bool) -> None:
    """It does not show, it does not count, and the finish reason is `stop`."""
    case = several.case
    most = most or len(case.answer) + 1
    end = case.tokenizer.token_to_id(token)
    assert end is not None
    with several.answering((*case.answer, end, *case.answer)):
        for kind in ("completions", "chat/completions"):
            found = several.openai(kind, **asked(several, kind, stream) | {"max_tokens": most})
            assert found == (case.text, "stop", len(case.answer))
        found = several.model("tensorrt_llm_bls", stream=stream, max_tokens=most)
        assert found == (case.text, len(case.answer))
        assert several.llm(stream, max_tokens=most) == (case.text, "end_id", len(case.answer))
        if engine_kind == "embedded" and not stream:
            assert several.model("ensemble", max_tokens=most) == (case.text, len(case.answer))


def test_the_log_prob_of_an_end_token_does_not_count(several: World, engine_kind: str) -> None:
    case = several.case
    given = {"text_input": case.prompt, "max_tokens": 50, "return_log_probs": True}
    with several.answering((*case.answer, case.tokenizer.token_to_id(SHOWN))):
        [part] = several.triton.ask("tensorrt_llm_bls", text_inputs(**given))
    assert part["output_log_probs"].tolist() == [[[-float(token) for token in case.answer]]]
    assert part["cum_log_probs"].tolist() == [[-float(sum(case.answer))]]


@STREAMED
def test_an_end_token_that_the_request_does_not_name_is_text(several: World, stream: bool) -> None:
    case = several.case
    with several.answering((*case.answer, case.tokenizer.token_to_id(SHOWN))):
        assert several.model("tensorrt_llm_bls", stream=stream, end_id=2)[0] == case.text + SHOWN


def log_probs_of(world: World, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """The objects `logprobs` of a response's only choice: one, or one per event of a stream."""
    body = json.dumps({"max_tokens": 50, **asked(world, kind, fields.get("stream", False)), **fields}).encode()
    with urllib.request.urlopen(f"{world.url}/v1/{kind}", body, timeout=60) as response:
        lines = response.read().decode().splitlines()
    bodies = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith(("data: {", "{"))]
    return [choice["logprobs"] for one in bodies for choice in one["choices"]]


@STREAMED
def test_log_probs_of_the_chosen_tokens(several: World, stream: bool) -> None:
    case = several.case
    wanted = [-float(token) for token in case.answer]
    texts = [" world", " ", "\ufffd", "\ufffd", " end"]
    with several.answering((*case.answer, case.tokenizer.token_to_id(SHOWN))):
        parts = log_probs_of(several, "completions", logprobs=0, stream=stream)
        assert [p for part in parts for p in part["token_logprobs"]] == wanted
        assert [text for part in parts for text in part["tokens"]] == texts
        assert [top for part in parts for top in part["top_logprobs"]] == [
            {text: p} for text, p in zip(texts, wanted, strict=True)
        ]
        assert [offset for part in parts for offset in part["text_offset"]] == [0, 6, 7, 7, 8]
        parts = log_probs_of(several, "chat/completions", logprobs=True, stream=stream)
        tokens = [token for part in parts for token in part["content"]]
        assert [(token["token"], token["logprob"]) for token in tokens] == list(zip(texts, wanted, strict=True))
        assert [token["bytes"] for token in tokens][1:4] == [[32], None, None]
        assert log_probs_of(several, "completions", stream=stream)[0] is None


def test_log_probs_end_with_a_stop_string(several: World) -> None:
    [found] = log_probs_of(several, "completions", logprobs=0, stop=" world")
    assert found["token_logprobs"] == [-float(several.case.answer[0])]


def test_events_before_the_usage_have_none(several: World) -> None:
    body = json.dumps({**asked(several, "completions", True)}).encode()
    with urllib.request.urlopen(f"{several.url}/v1/completions", body, timeout=60) as response:
        events = [json.loads(line[6:]) for line in response.read().decode().splitlines() if line.startswith("data: {")]
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["usage"]["completion_tokens"] == len(several.case.answer)
