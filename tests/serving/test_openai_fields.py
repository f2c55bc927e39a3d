"""Every field of OpenAI's requests is honoured, asks for nothing, or is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.text.tokenizers import TOKENIZERS
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.limits import Limits
from trtllm_pt.serving.openai.chat_template import ChatTemplate
from trtllm_pt.serving.openai.requests import CompletionRequest, RequestParser

types = pytest.importorskip("openai.types", reason="no OpenAI client here: pip install -e '.[embedded,dev,serve]'")
KINDS = ("completions", "chat/completions")
NEEDED: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "Hello"},
    "chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
}


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> RequestParser:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "chat_template.jinja").write_text("{{ messages | map(attribute='content') | join('|') }}")
    return RequestParser(
        tokenizer=TOKENIZERS["byte level"],
        end_id=0,
        further_ends=(),
        limits=Limits(vocab_size=512, max_seq_len=128, max_input_len=127),
        most_bytes=1000,
        template=ChatTemplate(folder),
    )


def parsed(parser: RequestParser, kind: str, **fields: Any) -> CompletionRequest:
    return parser.parse(kind, {**NEEDED[kind], **fields})


def plain(parser: RequestParser, kind: str) -> CompletionRequest:
    return parsed(parser, kind, seed=0)


# What a client may send of OpenAI's schemas without asking for anything: the defaults, above all.
NOTHING: dict[str, list[Any]] = {
    "audio": [None],
    "best_of": [None, 1],
    "echo": [None, False],
    "frequency_penalty": [None, 0, 0.0],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "logit_bias": [None, {}],
    "logprobs": [None],
    "max_completion_tokens": [None],
    "max_tokens": [None],
    "metadata": [None, {}],
    "modalities": [None, ["text"]],
    "model": [None, "demo"],
    "moderation": [None],
    "n": [None, 1],
    "parallel_tool_calls": [True, False],
    "prediction": [None],
    "presence_penalty": [None, 0],
    "prompt_cache_key": ["key"],
    "prompt_cache_retention": [None, "in_memory"],
    "reasoning_effort": [None, "none"],
    "response_format": [{"type": "text"}],
    "safety_identifier": [None, "somebody"],
    "seed": [None, 0],
    "service_tier": [None, "auto", "default"],
    "stop": [None, []],
    "store": [None, False],
    "stream": [None, False],
    "stream_options": [None],
    "suffix": [None, ""],
    "temperature": [None, 1, 1.0],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "top_logprobs": [None, 0],
    "top_p": [None, 1],
    "user": ["somebody"],
    "verbosity": [None, "medium"],
}
# And what it may ask for that this server does not have.
REFUSED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "best_of": 2,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "service_tier": "flex",
    "store": True,
    "suffix": "x",
    "verbosity": "low",
    "web_search_options": {},
}
HONOURED = set(NOTHING) - set(REFUSED) | {"messages", "prompt"}


def fields_of(kind: str) -> set[str]:
    """The fields of OpenAI's own client."""
    if kind == "completions":
        from openai.types.completion_create_params import CompletionCreateParamsStreaming as Params
    else:
        from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as Params
    return set(get_type_hints(Params))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_have_every_field_of_openais_client(kind: str) -> None:
    assert fields_of(kind) <= HONOURED | set(REFUSED)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_ask_for_nothing(parser: RequestParser, kind: str) -> None:
    for name in sorted(fields_of(kind) & set(NOTHING)):
        for value in NOTHING[name]:
            assert parsed(parser, kind, **{"seed": 0, name: value or 0 if name == "seed" else value}) == plain(
                parser, kind
            ), (name, value)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_that_are_refused(parser: RequestParser, kind: str) -> None:
    for name in sorted(fields_of(kind) & set(REFUSED)):
        with pytest.raises(UsageError, match=rf"^{name} .*(not supported|must equal n)"):
            parsed(parser, kind, **{name: REFUSED[name]})


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("completions", {"logprobs": 21}, r"logprobs \(21\) must be between 0 and 20"),
    ("completions", {"logprobs": True}, r"logprobs \(True\) must be a whole number"),
    ("completions", {"logprobs": -1}, r"logprobs \(-1\) must be between 0 and 20"),
    ("chat/completions", {"logprobs": 0}, r"logprobs \(0\) must be true or false"),
    (
        "chat/completions",
        {"top_logprobs": False},
        r"top_logprobs \(False\) must be a whole number",
    ),
    ("chat/completions", {"store": 0}, r"store \(0\) is not supported: leave it out, or set it to false"),
    ("chat/completions", {"functions": [{"name": "f " * 999}]}, r"^functions \(.{1,80} …\) is not supported: leave it"),
    ("completions", {"stream_options": {"include_usage": True}}, "stream_options needs stream to be true"),
    (
        "completions",
        {"stream": True, "stream_options": {"include_usage": "no"}},
        r"stream_options.include_usage \('no'\) must be true or false",
    ),
    (
        "completions",
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats needs include_usage to be true",
    ),
    ("completions", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x is not supported"),
    ("completions", {"logit_bias": {"x": 1}}, r"logit_bias \('x'\) must name tokens by their ids"),
    ("completions", {"logit_bias": {"5": 101}}, r"logit_bias of token 5 \(101\) must be a number between -100 and 100"),
    ("completions", {"logit_bias": {"5": True}}, r"logit_bias of token 5 \(True\) must be a number between"),
    ("completions", {"logit_bias": {"512": 1}}, r"logit_bias \(512\) must name token ids between 0 and 511"),
    ("completions", {"logit_bias": [5]}, r"logit_bias \(\[5\]\) must be an object"),
    ("completions", {"stop_token_ids": [5, 512]}, r"stop_token_ids\[1\] \(512\) must be a token id between 0 and 511"),
    ("completions", {"stop_token_ids": [[5]]}, r"stop_token_ids\[0\] \(\[5\]\) must be a token id between 0 and 511"),
    ("completions", {"priority": 1.5}, r"priority \(1.5\) must be a whole number"),
    ("completions", {"priority": 2**31}, r"priority \(2147483648\) must be at most 2147483647"),
    ("completions", {"cache_salt": 5}, r"cache_salt \(5\) must be a string"),
    ("completions", {"skip_special_tokens": "no"}, r"skip_special_tokens \('no'\) must be true or false"),
    (
        "chat/completions",
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation is not supported",
    ),
    ("completions", {"top_p": -0.1}, r"top_p \(-0.1\) must be a number above 0 and at most 1"),
    ("completions", {"messages": []}, "messages is not supported"),
    ("chat/completions", {"echo": True}, "echo is not supported"),
    ("chat/completions", {"messages": ["x"]}, r"messages\[0\] must be an object with a role"),
    ("chat/completions", {"messages": [{"role": 1, "content": ""}]}, r"messages\[0\] must be an object with a role"),
    ("chat/completions", {"messages": [{"role": "user"}]}, r"messages\[0\] must have a content that is a string or"),
    ("chat/completions", {"messages": [{"role": "user", "content": []}]}, r"messages\[0\].content must have at least"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        r'messages\[0\].content\[1\] must be {"type": "text", "text": …}: other parts are not supported',
    ),
    (
        "chat/completions",
        {"continue_final_message": True, "add_generation_prompt": True},
        r"continue_final_message \(True\) and add_generation_prompt \(True\) cannot be combined",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named(parser: RequestParser, kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        [choice] = parsed(parser, kind, **fields).choices
        parser.limits.check_sampling(choice.sampling)


@pytest.mark.parametrize("kind", KINDS)
def test_a_top_p_of_0_leaves_one_token(parser: RequestParser, kind: str) -> None:
    [choice] = parsed(parser, kind, top_p=0, temperature=2).choices
    assert (choice.sampling.temperature, choice.sampling.top_p) == (0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_other_servers(parser: RequestParser, kind: str) -> None:
    [choice] = parsed(
        replace(parser, further_ends=(7,)),
        kind,
        logit_bias={"5": -100, "6": 0.5},
        stop_token_ids=[9, 8],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        priority=-2,
        cache_salt="mine",
        ignore_eos=False,
    ).choices
    sampling = choice.sampling
    assert sampling.logit_bias == ((5, -100.0), (6, 0.5))
    assert (sampling.end_id, sampling.stop_token_ids, sampling.include_stop_words) == (0, (9, 8, 7), True)
    assert (sampling.priority, sampling.cache_salt, choice.skip_special_tokens) == (-2, "mine", False)
    [choice] = parsed(parser, kind, stop_token_ids=[9], ignore_eos=True).choices
    assert (choice.sampling.end_id, choice.sampling.stop_token_ids) == (-1, (9,))


def test_several_system_messages(tmp_path: Path, parser: RequestParser) -> None:
    """They reach the template as they are, which decides what to do with them."""
    (tmp_path / "chat_template.jinja").write_text(
        "{% if messages | selectattr('role', 'equalto', 'system') | list | length > 2 %}"
        "{{ raise_exception('two at most') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    chatty = replace(parser, template=ChatTemplate(tmp_path))
    system = [{"role": "system", "content": word} for word in "abc"]
    user = {"role": "user", "content": "x"}
    [choice] = parsed(chatty, "chat/completions", messages=[system[0], user, system[1]]).choices
    assert chatty.tokenizer.decode(choice.prompt) == "<system>a<user>x<system>b"
    with pytest.raises(UsageError, match="messages do not fit the chat template: two at most"):
        parsed(chatty, "chat/completions", messages=[*system, user])


def test_parts_of_text_are_lines(parser: RequestParser) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    [listed] = parsed(parser, "chat/completions", messages=[{"role": "user", "content": parts}]).choices
    [joined] = parsed(parser, "chat/completions", messages=[{"role": "user", "content": "a\nb"}]).choices
    assert listed.prompt == joined.prompt


def test_an_answer_that_the_client_has_begun(tmp_path: Path, parser: RequestParser) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}A{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    parser = RequestParser(
        tokenizer=parser.tokenizer,
        end_id=0,
        further_ends=(),
        limits=parser.limits,
        most_bytes=1000,
        template=ChatTemplate(tmp_path),
    )
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is"}]

    def prompt(**fields: bool) -> str:
        [choice] = parser.parse("chat/completions", {"messages": messages, **fields}).choices
        return str(parser.tokenizer.decode(choice.prompt))

    assert prompt() == "<user>x</><assistant>It is</>A"
    assert prompt(add_generation_prompt=False) == "<user>x</><assistant>It is</>"
    continued = "<user>x</><assistant>It is"
    assert prompt(continue_final_message=True) == continued
    assert prompt(continue_final_message=True, add_generation_prompt=False) == continued
