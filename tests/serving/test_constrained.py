"""Constrained output and tool calls at every door of the server. Nothing is compiled: see in_process.py.

The engine draws at random from what the guide allows, so that the guide alone makes an output right.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.configs import PRETRAINED, TINY
from tests.serving.conftest import needs_triton
from tests.serving.in_process import Triton, engine_folder, text_inputs, triton_of
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import Request
from trtllm_pt.serving.openai.tools import ToolCalls, ToolFormat
from trtllm_pt.serving.triton.server import free_ports
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

openai = pytest.importorskip("openai", reason="no OpenAI client here: pip install -e '.[embedded,dev,serve]'")
pytestmark = needs_triton
END = end_ids(PRETRAINED)[0]
TURNS = (
    "{% for m in messages %}# {{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{{ '\\n' }}{% endfor %}"
)
HERMES = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}" + TURNS
LLAMA = '{% if tools %}{{ tools | tojson }} {"name": …, "parameters": …}{% endif %}' + TURNS
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 4}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
COUNT = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}},
    {"type": "function", "function": {"name": "count", "parameters": COUNT}},
    {"type": "function", "function": {"name": "now"}},
]
NESTED = "[" * 10000
PARAMETERS = {"weather": CITY, "count": COUNT}
USER: Any = [{"role": "user", "content": "hi"}]


@dataclass
class Door:
    """An engine that says `text`, or what a guide allows."""

    client: Any
    triton: Triton
    tokenizer: Any
    vocabulary: Any
    text: str = "hello"
    requests: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> Sequence[int]:
        self.requests.append(request)
        sampling = request.sampling
        if sampling.guide_type is None:
            return [*self.tokenizer.encode(self.text).ids]
        state = self.vocabulary.compile(sampling.guide_type, sampling.guide).constraint(sampling)
        draw, tokens = random.Random(sampling.seed), list[int]()
        while (token := draw.choice(np.flatnonzero(~state.forbidden()).tolist())) != END:
            tokens.append(token)
            if not state.take(token):
                break
        return tokens

    def chat(self, **fields: Any) -> Any:
        return self.client.chat.completions.create(**{"model": "demo", "messages": USER, "seed": 1, **fields})

    def streamed(self, **fields: Any) -> tuple[str, list[Any], str]:
        """The content, the calls and the finish reason of a stream."""
        content, calls, reason = "", {}, ""
        for event in self.chat(stream=True, **fields):
            assert isinstance(event, openai.types.chat.ChatCompletionChunk)
            [choice] = event.choices
            content += choice.delta.content or ""
            calls |= {call.index: call for call in choice.delta.tool_calls or []}
            reason = choice.finish_reason or reason
        assert [*calls] == [*range(len(calls))]
        return content, [*calls.values()], reason


@contextmanager
def opened(root: Path, template: str) -> Iterator[Door]:
    from trtllm_pt.batching.grammar import Vocabulary
    from trtllm_pt.serving.openai.app import OpenAIServer

    tokenizer = load_tokenizer(PRETRAINED, required=True)
    model = TINY.replace(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=1024)
    config = {"chat_template": template}
    engines = engine_folder(root / "engines", tokenizer, [END], model=model, tokenizer_config=config)
    vocabulary = Vocabulary(engines / "tokenizer", tokenizer.get_vocab_size())
    [port] = free_ports(1)
    found: list[Door] = []
    with (
        triton_of(engines, lambda request: found[0].answer(request), root) as triton,
        OpenAIServer(engines, "demo", "nowhere").listening("127.0.0.1", port),
    ):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        found.append(Door(client, triton, tokenizer, vocabulary))
        yield found[0]


@pytest.fixture(scope="module")
def hermes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("hermes"), HERMES) as door:
        yield door


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("llama"), LLAMA) as door:
        yield door


@pytest.fixture(params=["hermes", "llama"])
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.getfixturevalue(request.param)
    return found


# Guides

GUIDES: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": COUNT}}}, COUNT),
    ({"structured_outputs": {"json": COUNT}}, COUNT),
    ({"structured_outputs": {"json": json.dumps(COUNT), "regex": None}}, COUNT),
    ({"guided_json": COUNT}, COUNT),
    ({"guided_json": json.dumps(COUNT)}, COUNT),
    ({"structured_outputs": {"regex": "[a-c]{2,4}!"}}, "[a-c]{2,4}!"),
    ({"guided_regex": "[a-c]{2,4}!"}, "[a-c]{2,4}!"),
    ({"structured_outputs": {"choice": ["yes", "né"]}}, "yes|né"),
    ({"guided_choice": ["yes", "né"]}, "yes|né"),
    ({"structured_outputs": {"grammar": 'root ::= "a" [0-9]'}}, "a[0-9]"),
    ({"guided_grammar": 'start: "a" /[0-9]/'}, "a[0-9]"),
]  # type: ignore[list-item]  # fmt: skip


def check(text: str, wanted: Any) -> None:
    if isinstance(wanted, str):
        assert re.fullmatch(wanted, text), text
    else:
        jsonschema.validate(json.loads(text), wanted)


@pytest.mark.parametrize(("fields", "wanted"), GUIDES)
def test_guides_of_openais_requests(hermes: Door, fields: dict[str, Any], wanted: Any) -> None:
    answer = hermes.chat(extra_body=fields, n=3, temperature=0.5)
    assert isinstance(answer, openai.types.chat.ChatCompletion)
    for choice in answer.choices:
        assert choice.finish_reason == "stop" and choice.message.tool_calls is None
        check(choice.message.content or "", wanted)
    [choice] = hermes.client.completions.create(model="demo", prompt="hi", extra_body=fields, max_tokens=90).choices
    check(choice.text, wanted)
    content, _, reason = hermes.streamed(extra_body=fields)
    assert reason == "stop"
    check(content, wanted)


def test_json_objects(hermes: Door) -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        hermes.chat(extra_body=fields, max_tokens=1)
        sampling = hermes.requests[-1].sampling
        assert (sampling.guide_type, json.loads(sampling.guide)) == ("json_schema", {"type": "object"})
    for fields in ({"response_format": {"type": "text"}}, {"structured_outputs": {"json_object": False}}):
        assert hermes.chat(extra_body=fields).choices[0].message.content == "hello"


BAD_SCHEMA = {"type": "object", "properties": {"a": {"not": {}}}}
BAD_TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": BAD_SCHEMA}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type ('xml') must be text, json_object or json_schema"),
        ({"response_format": {}}, "response_format.type (None) must be text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema must be an object"),
        ({"guided_json": BAD_SCHEMA}, "the JSON schema at #/properties/a: not is not supported"),
        ({"guided_json": "{"}, "the JSON schema is not JSON: Expecting property name enclosed in double quotes: line"),
        ({"guided_regex": "(a"}, "the regular expression at character 1: unclosed group"),
        ({"guided_grammar": "root ::= x"}, "the grammar: Rule 'x' not found"),
        ({"guided_regex": ""}, "guided_regex must be a non-empty string"),
        ({"guided_regex": "a" * 65537}, "guide has 65537 bytes, but must have at most 65536"),
        ({"guided_choice": []}, "guided_choice must be a list of at least one string"),
        ({"guided_choice": "a"}, "guided_choice ('a') must be a list"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex must be a non-empty string"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag is not supported: it must be one of json, regex, choice, grammar, json_",
        ),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "response_format and guided_regex cannot be combined: an output has one guide",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.regex and structured_outputs.choice cannot be combined: an output has one guide",
        ),
    ],
)
def test_wrong_guides_are_400(hermes: Door, fields: dict[str, Any], message: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        [*hermes.chat(extra_body=fields, stream=stream)]
    assert caught.value.body["message"].startswith(message), caught.value.body  # type: ignore[index,call-overload]
    assert caught.value.body["code"] == "invalid"  # type: ignore[index,call-overload]


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_guides_of_tritons_requests(hermes: Door, model: str) -> None:
    given = {"text_input": "hi", "max_tokens": 60}
    for kind, guide, wanted in (("json_schema", json.dumps(COUNT), COUNT), ("choice", '["yes", "no"]', "yes|no")):
        guided = {"guided_decoding_guide_type": kind, "guided_decoding_guide": guide}
        [part] = hermes.triton.ask(model, text_inputs(**given, **guided))
        check(part["text_output"][0].decode(), wanted)
    with pytest.raises(Exception, match=r"^guide is missing: guide_type regex needs one"):
        [*hermes.triton.ask(model, text_inputs(**given, guided_decoding_guide_type="regex"))]
    with pytest.raises(Exception, match=r"^guide_type \('xml'\) must be one of json, json_schema, regex, "):
        [*hermes.triton.ask(model, text_inputs(**given, guided_decoding_guide_type="xml"))]
    with pytest.raises(Exception, match=r"^the regular expression at character 1: unclosed group"):
        bad = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "(a"}
        [*hermes.triton.ask(model, text_inputs(**given, **bad))]


# Tool calls


def check_call(call: Any) -> str:
    """Check a call, and return the name of its function."""
    assert call.type == "function" and re.fullmatch(r"call_[0-9a-f]{24}", call.id)
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, PARAMETERS.get(call.function.name, {"type": "object"}))
    return str(call.function.name)


FORCED: list[tuple[str, dict[str, Any], set[str]]] = [
    ("required", {"tools": TOOLS[:2], "tool_choice": "required", "parallel_tool_calls": False}, {"weather", "count"}),
    (
        "named",
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "count"}}},
        {"count"},
    ),
]


@pytest.mark.parametrize(("fields", "names"), [case[1:] for case in FORCED], ids=[case[0] for case in FORCED])
def test_forced_calls(door: Door, fields: dict[str, Any], names: set[str]) -> None:
    found = set()
    for seed in range(8):
        [choice] = door.chat(seed=seed, **fields).choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        [call] = choice.message.tool_calls
        assert isinstance(call, openai.types.chat.ChatCompletionMessageToolCall)
        found.add(check_call(call))
        content, [streamed], reason = door.streamed(seed=seed, **fields)
        assert (content, reason) == ("", "tool_calls") and check_call(streamed) == call.function.name
        assert json.loads(streamed.function.arguments) == json.loads(call.function.arguments)
    assert found == names


def test_several_forced_calls(hermes: Door) -> None:
    numbers = set()
    for seed in range(20):
        [choice] = hermes.chat(seed=seed, tools=TOOLS[:2], tool_choice="required").choices
        assert all(check_call(call) for call in choice.message.tool_calls)
        numbers.add(len(choice.message.tool_calls))
        _, calls, _ = hermes.streamed(seed=seed, tools=TOOLS[:2], tool_choice="required")
        assert len(calls) == len(choice.message.tool_calls)
    assert len(numbers) > 1


def called(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rom; }é"}}\n</tool_call>'
WEATHER = called("weather", city="Rom; }é")
NOW = called("now")
TEXTS: list[tuple[str, str, str | None, list[dict[str, Any]]]] = [
    ("hermes", "hello <tool is no call\n", "hello <tool is no call\n", []),
    ("hermes", CALL, None, [WEATHER]),
    ("hermes", f"I look.\n\n{CALL}\n{CALL}\n", "I look.", [WEATHER, WEATHER]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', None, [NOW]),
    ("hermes", "<tool_call>\n{'name': 5}\n</tool_call>", "<tool_call>\n{'name': 5}\n</tool_call>", []),
    ("hermes", '<tool_call>\n{"name": "weather", "arg', '<tool_call>\n{"name": "weather", "arg', []),
    ("llama", "hello", "hello", []),
    ("llama", '{"name": "weather", "parameters": {"city": "Rom; }é"}}', None, [WEATHER]),
    ("llama", '{"name": "weather", "parameters": {"city": "Rom; }é"}}; {"name": "now"}', None, [WEATHER, NOW]),
    ("llama", '{"city": "Rom"}', '{"city": "Rom"}', []),
    ("llama", '{"name": "weather"} and', '{"name": "weather"} and', []),
    ("llama", "{ 1", "{ 1", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "text"), [("hermes", f"<tool_call>{NESTED}</tool_call>"), ("llama", '{"name": ' + NESTED)]
)
def test_an_output_that_is_nested_too_deeply_is_a_text(form: ToolFormat, text: str) -> None:
    assert ToolCalls(form, several=True).push(text, last=True) == (text, [])


@pytest.mark.parametrize(("form", "text", "content", "calls"), TEXTS)
def test_calls_in_a_text(
    request: pytest.FixtureRequest, form: str, text: str, content: str | None, calls: list[dict[str, Any]]
) -> None:
    door: Door = request.getfixturevalue(form)
    door.text = text
    [choice] = door.chat(tools=TOOLS).choices
    assert choice.message.content == content
    shown = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
    assert shown == [(call["name"], call["arguments"]) for call in calls]
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    streamed, found, reason = door.streamed(tools=TOOLS)
    assert (streamed or None, reason) == (content, choice.finish_reason)
    assert [(call.function.name, json.loads(call.function.arguments)) for call in found] == shown
    [choice] = door.chat(tools=TOOLS, parallel_tool_calls=False).choices
    assert len(choice.message.tool_calls or []) == min(len(calls), 1)
    [choice] = door.chat(tools=TOOLS, tool_choice="none").choices  # the model is not told of them
    assert (choice.message.content, choice.message.tool_calls) == (text, None)


def test_what_the_template_is_given(door: Door) -> None:
    """Tools, and earlier calls with their arguments as objects."""
    door.text = "hello"
    arguments = json.dumps({"city": "Oslo"})
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    answered = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "9 °C"},
    ]
    door.chat(messages=[*USER, *answered], tools=TOOLS)
    prompt = door.tokenizer.decode(door.requests[-1].token_ids)
    assert json.JSONDecoder().raw_decode(prompt)[0] == TOOLS
    assert "# assistant: Oslo\n# tool: 9 °C\n" in prompt
    door.chat(messages=USER, tools=TOOLS, tool_choice="none")
    assert door.tokenizer.decode(door.requests[-1].token_ids) == "# user: hi\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [5]}, 'tools[0] must be {"type": "function", "function": {"name": …}}'),
        ({"tools": [{"type": "custom", "custom": {}}]}, 'tools[0] must be {"type": "function", "function": {"name": '),
        ({"tools": [*TOOLS, {"type": "function", "function": {}}]}, "tools[3].function.name must be a non-empty"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters must be an object: a JSON schema",
        ),
        ({"tool_choice": "required"}, "tool_choice ('required') needs tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice ('any') must be none, auto, required or {"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name ('x') is not the name of a tool",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"},
            "tool_choice cannot be combined with another guide: an output has one guide",
        ),
        (
            {"tools": [*TOOLS, BAD_TOOL], "tool_choice": "required"},
            "the grammar at line 11, character 21 (tools_3_parameters): not is not supported",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments ('{') must be a JSON object",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": NESTED}}]}]},
            "messages[0].tool_calls[0].function.arguments ('[[",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls (1) must be true or false"),
    ],
)  # fmt: skip
def test_wrong_tools(hermes: Door, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        hermes.chat(extra_body=fields)
    assert caught.value.body["message"].startswith(message), caught.value.body  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TURNS, "tools are not supported: this model's chat template has none"),
        ("{{ tools }}", "tools are not supported: this model's chat template has tool calls of an unknown form"),
        ("{{ raise_exception('no') }}", "tools are not supported: messages do not fit the chat template: no"),
        ("", "tools are not supported: this model has no chat template: use /v1/completions"),
    ],
)
def test_templates_without_tools(tmp_path: Path, template: str, message: str) -> None:
    from trtllm_pt.serving.openai.chat_template import ChatTemplate

    if template:
        (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UsageError) as caught:
        _ = ChatTemplate(tmp_path).tool_format
    assert str(caught.value) == message


def test_a_template_for_tools_alone(tmp_path: Path) -> None:
    from trtllm_pt.serving.openai.chat_template import ChatTemplate

    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(HERMES)
    (tmp_path / "chat_template.jinja").write_text("no tools")
    template = ChatTemplate(tmp_path)
    assert template.tool_format == "hermes"
    assert "weather" in template.render(USER, tools=TOOLS) and template.render(USER) == "no tools"
