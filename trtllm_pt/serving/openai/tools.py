"""Tool calls: what a request says of tools, and the calls in the text of a model.

A model writes a call in the form that its chat template shows it: Hermes (also Qwen) as
<tool_call>{"name": …, "arguments": …}</tool_call>, perhaps several and after some text, and Llama 3 as
{"name": …, "parameters": …}, which is the whole output.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.schema import prepared
from trtllm_pt.serving.openai.guides import Guide
from trtllm_pt.text.stream import overlap

ToolFormat = Literal["hermes", "llama"]
Tool = Mapping[str, Any]
_BEGIN, _END = "<tool_call>", "</tool_call>"
_ARGUMENTS: Mapping[ToolFormat, str] = {"hermes": "arguments", "llama": "parameters"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a request asks for. tools: those that the model is told of."""

    tools: tuple[Tool, ...]
    forced: tuple[Tool, ...]  # those of which the model has to call one; empty: it may call any, or none
    several: bool  # whether it may call more than one

    def guide(self, form: ToolFormat) -> Guide | None:
        """Return the guide that makes the output a call of a forced tool, with arguments of its schema."""
        return ("ebnf_grammar", _grammar(self.forced, form, self.several)) if self.forced else None


def tool_use(given: Mapping[str, Any]) -> ToolUse | None:
    """Return what the fields of a chat request say of tools, or None if it has none or must not use them.

    Raises UsageError, naming the field, for one that is wrong.
    """
    tools = tuple(_tool(f"tools[{number}]", tool) for number, tool in enumerate(given.get("tools", ())))
    names = [tool["function"]["name"] for tool in tools]
    choice = given.get("tool_choice", "auto" if tools else "none")
    several = given.get("parallel_tool_calls", True)
    if choice == "none" or (choice == "auto" and not tools):
        return None
    if choice == "auto":
        return ToolUse(tools=tools, forced=(), several=several)
    if choice == "required":
        if not tools:
            raise UsageError("tool_choice ('required') needs tools")
        return ToolUse(tools=tools, forced=tools, several=several)
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict):
        raise UsageError(
            f"tool_choice ({choice!r}) must be none, auto, required or "
            '{"type": "function", "function": {"name": …}}'
        )
    if function.get("name") not in names:
        raise UsageError(f"tool_choice.function.name ({function.get('name')!r}) is not the name of a tool")
    return ToolUse(tools=tools, forced=(tools[names.index(function["name"])],), several=False)


def _tool(name: str, tool: Any) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise UsageError(f'{name} must be {{"type": "function", "function": {{"name": …}}}}')
    if not (isinstance(function.get("name"), str) and function["name"]):
        raise UsageError(f"{name}.function.name must be a non-empty string")
    if not isinstance(function.get("parameters", {}), dict):
        raise UsageError(f"{name}.function.parameters must be an object: a JSON schema")
    return dict(tool)


def with_arguments(name: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a message whose calls have their arguments as objects, as templates expect them. Clients send texts."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        place = f"{name}.tool_calls[{number}].function"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f"{place} must be an object with a name")
        arguments = function.get("arguments", {})
        value = _value(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(value, dict):
            raise UsageError(f"{place}.arguments ({arguments!r}) must be a JSON object")
        calls.append({**call, "function": {**function, "arguments": value}})
    return {**message, "tool_calls": calls}


def _grammar(tools: Sequence[Tool], form: ToolFormat, several: bool) -> str:
    """Return a grammar of calls of these tools. The arguments of each have a line of their own."""
    lines = []
    for number, tool in enumerate(tools):
        function = tool["function"]
        begin = f'{{"name": {json.dumps(function["name"])}, "{_ARGUMENTS[form]}": '
        schema = {"type": "object", **json.loads(json.dumps(function.get("parameters") or {}))}
        lines.append(f'tool_{number}: {json.dumps(begin)} tools_{number}_parameters "}}"')
        lines.append(f"tools_{number}_parameters: %json {json.dumps(prepared(schema))}")
    one = " | ".join(f"tool_{number}" for number in range(len(tools)))
    if form == "llama":
        return "\n".join(("start: call", f"call: {one}", *lines))
    whole = 'call ("\\n" call)*' if several else "call"
    return "\n".join((f"start: {whole}", f'call: "{_BEGIN}\\n" body "\\n{_END}"', f"body: {one}", *lines))


@dataclass(slots=True)
class ToolCalls:
    """Finds the calls in the text of one output, which comes in pieces."""

    form: ToolFormat
    several: bool
    found: int = 0  # calls until now
    _held: str = ""  # text that may belong to a call

    def push(self, text: str, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Add text; `last`: whether it is the end. Returns the new text that is no call, and the new calls."""
        self._held += text
        content, calls = (self._hermes if self.form == "hermes" else self._llama)(last)
        if not self.several:
            calls = calls[: 1 - self.found]
        self.found += len(calls)
        return content, calls

    def _hermes(self, last: bool) -> tuple[str, list[dict[str, Any]]]:
        content, calls = "", []
        while (begin := self._held.find(_BEGIN)) >= 0 and (end := self._held.find(_END, begin)) >= 0:
            content += self._held[:begin].rstrip()
            call = self._call(_value(self._held[begin + len(_BEGIN) : end]))
            whole, self._held = self._held[begin : end + len(_END)], self._held[end + len(_END) :]
            if call is None:
                content += whole
            else:
                calls.append(call)
        if last:
            rest, self._held = self._held, ""
            content += rest if rest.strip() or not (calls or self.found) else ""
        elif begin < 0:  # spaces before a call are not part of the text
            kept = len(self._held[: len(self._held) - overlap(self._held, _BEGIN)].rstrip())
            content, self._held = content + self._held[:kept], self._held[kept:]
        return content, calls

    def _llama(self, last: bool) -> tuple[str, list[dict[str, Any]]]:
        text = self._held
        if not last and (not text.strip() or text.lstrip().startswith("{")):
            return "", []
        self._held = ""
        try:
            calls = [self._call(one) for one in _values(text)]
        except (ValueError, RecursionError):
            return text, []
        good = [call for call in calls if call is not None]
        return (text, []) if len(good) < len(calls) else ("", good)

    def _call(self, call: Any) -> dict[str, Any] | None:
        """Return a call in OpenAI's form, or None if a JSON value is no call."""
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get(_ARGUMENTS[self.form], {})
        function = {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _value(text: str) -> Any:
    """Return the value of a JSON text, or None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON values of a text, between which there are semicolons. Raises ValueError for another text."""
    at, rest = 0, text.strip()
    while True:
        value, at = json.JSONDecoder().raw_decode(rest, at)
        yield value
        following = rest[at:].lstrip()
        if not following:
            return
        if not following.startswith(";"):
            raise ValueError("no semicolon between two values")
        at = len(rest) - len(following[1:].lstrip())
