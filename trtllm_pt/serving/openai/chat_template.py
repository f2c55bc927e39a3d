"""Renders chats with the template of a tokenizer's folder, in the environment that transformers gives a template.

`tests/serving/test_chat_template.py` compares the texts with those of transformers, which the server does not need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.environment import Template
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.serving.openai.tools import Tool, ToolFormat

Message = Mapping[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that clients have for a message's reasoning
_MARK = "\ue000the last message ends here\ue001"  # no text and no template contains this

_TOOL = "the_tool_of_this_name"


class ChatTemplate:
    """The chat template of the tokenizer in `folder`, which may have none."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        config = read_json(path) if path.exists() else {}
        self._sources = _files(folder) or _of_config(config.get("chat_template"))
        self._tokens = _special_tokens(config, folder)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Return the text of a chat.

        add_generation_prompt: whether the text ends with the beginning of the assistant's message, if the template
        knows it. continue_final_message: whether the text ends with the last message, which the output then continues.
        The content of a message is a text, or a list of {"type": "text", "text": …}. tools: as in OpenAI's API. Raises
        UsageError if there is no template, if it has no place for tools, or if it fails.
        """
        chat = [self._prepared(message) for message in messages]
        if not continue_final_message:
            return self._text(chat, add_generation_prompt, tools)
        *others, last = chat
        if not last.get("content"):
            raise UsageError("continue_final_message: the last message has no content")
        text = self._text([*others, _marked(last)], False, tools)
        before, mark, after = text.rpartition(_MARK)
        if not mark or _last_text(last).strip() not in before:
            raise UsageError("continue_final_message: the chat template changes the content of the last message")
        return before if after.startswith(" ") else before.rstrip()  # without the space, the template trims messages

    def _prepared(self, message: Message) -> Message:
        """Return a message as templates expect it: without empty fields, and with the names that they know."""
        kept = {key: value for key, value in message.items() if value is not None}
        if isinstance(kept.get("content"), list) and not self._takes_parts:
            kept["content"] = "\n".join(part["text"] for part in kept["content"])
        reasoning = next((kept[key] for key in _REASONING if key in kept), None)
        return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes tool calls, as the template shows it. Raises UsageError if the template has no tools."""
        tool = {"type": "function", "function": {"name": _TOOL, "description": "", "parameters": {"type": "object"}}}
        try:
            shown = self._text([{"role": "user", "content": ""}], True, [tool])
        except UsageError as error:
            raise UsageError(f"tools are not supported: {error}") from None
        if _TOOL not in shown:
            raise UsageError("tools are not supported: this model's chat template has none")
        source = self._source(True)
        if "<tool_call>" in source:
            return "hermes"
        if re.search(r'"parameters\\?":', source):
            return "llama"
        raise UsageError("tools are not supported: this model's chat template has tool calls of an unknown form")

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Tool] = ()) -> str:
        template = self._tool_template if tools else self._template
        try:
            return template.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except Exception as error:  # a template is a program, which can raise anything
            raise UsageError(f"messages do not fit the chat template: {error}") from None

    @cached_property
    def _template(self) -> Template:
        return _compiled(self._source(False))

    @cached_property
    def _tool_template(self) -> Template:
        return _compiled(self._source(True))

    def _source(self, with_tools: bool) -> str:
        if not self._sources:
            raise UsageError("this model has no chat template: use /v1/completions")
        if with_tools and "tool_use" in self._sources:
            return self._sources["tool_use"]
        if "default" not in self._sources:
            named = ", ".join(sorted(self._sources))
            raise UsageError(f"this model has several chat templates ({named}), and none of them is named default")
        return self._sources["default"]

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template can show a content that is a list of parts, and does not print the list as it is."""
        part = {"type": "text", "text": _MARK}
        try:
            shown = self._text([{"role": "user", "content": [part]}], True)
        except UsageError:
            return False
        return _MARK in shown and not any(f"{quote}{_MARK}{quote}" in shown for quote in "'\"")


def _compiled(source: str) -> Template:
    try:
        return _environment().from_string(source)
    except TemplateError as error:
        raise UsageError(f"this model's chat template is not valid: {error}") from None


def _files(folder: Path) -> Mapping[str, str]:
    """Return the templates that have files of their own, by name. They replace those of tokenizer_config.json."""
    paths = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    default = folder / "chat_template.jinja"
    paths |= {"default": default} if default.exists() and "default" not in paths else {}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def _of_config(given: Any) -> Mapping[str, str]:
    """Return the templates of tokenizer_config.json, by name: it has one, or a list of several."""
    if isinstance(given, list):
        return {entry["name"]: entry["template"] for entry in given}
    return {"default": given} if isinstance(given, str) else {}


def _special_tokens(config: Mapping[str, Any], folder: Path) -> Mapping[str, str]:
    """Return the special tokens that have names, by name."""
    given = dict(config)
    path = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and path.exists():
        given |= read_json(path)
    extra = given.get("extra_special_tokens")
    given |= extra if isinstance(extra, dict) else {}
    names = {name for name in given if name.endswith("_token")} | set(extra if isinstance(extra, dict) else ())
    found = {name: _content(given[name]) for name in names}
    return {name: token for name, token in found.items() if token is not None}


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _last_text(message: Message) -> str:
    content = message["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


def _marked(message: Message) -> Message:
    """Return a message whose text ends with the mark and a space."""
    text = f"{_last_text(message)}{_MARK} "
    content = message["content"]
    return {**message, "content": text if isinstance(content, str) else [*content[:-1], {**content[-1], "text": text}]}


class _Generation(Extension):
    """The block `{% generation %}`, with which a template marks the assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012, because it is jinja2's declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`. Jinja's own one escapes HTML and sorts keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)
