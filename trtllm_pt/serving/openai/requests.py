"""Parses the bodies of OpenAI's completions and chat completions into prompts and sampling parameters."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.requests.fields import NUMBERS, WHOLE
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.serving.triton.models.preprocessing import check_bytes
from trtllm_pt.serving.triton.models.request import MOST_OUTPUTS

_NUMBER, _WHOLE = (int, float), (int,)
_SHARED: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "n": _WHOLE,
    "stream": (bool,),
    "stream_options": (dict,),
    "stop": (str, list),
    "user": (str,),
    "ignore_eos": (bool,),  # not OpenAI's, but other servers have it
    **{field.name: _WHOLE if field.kind == WHOLE else _NUMBER for field in NUMBERS},
}
_FIELDS = {
    "completions": {**_SHARED, "prompt": (str, list), "echo": (bool,)},
    "chat/completions": {**_SHARED, "messages": (list,), "max_completion_tokens": _WHOLE},
}
# Fields that are not supported, with the values that ask for nothing. These values are accepted and ignored.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of a response: its prompt in token ids, its sampling parameters, and its stop strings."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]
    echo: str  # text that precedes the generated text; empty, or the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A parsed request: its choices in order, and the form of the response."""

    choices: tuple[Choice, ...]
    stream: bool
    usage: bool  # whether a stream ends with the usage


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParser:
    """Parses the requests to one engine. `end_id` is the tokenizer's end token, or -1 if it has none."""

    tokenizer: Tokenizer
    end_id: int
    further_ends: tuple[tuple[int, ...], ...]  # the tokenizer's other end tokens, as stop words
    limits: Limits
    most_bytes: int  # the longest prompt, in UTF-8
    folder: Path  # the tokenizer's folder, which may have a chat template

    def parse(self, kind: str, body: Mapping[str, Any]) -> CompletionRequest:
        """Parse the body of a request. kind: `completions` or `chat/completions`.

        Raises UsageError, naming the field, for a field that is missing, unknown or wrong.
        """
        given = _checked(kind, body)
        prompts = self._chat(given) if kind == "chat/completions" else self._prompts(given)
        number = given.get("n", 1)
        if number < 1:
            raise UsageError(f"n ({number}) must be at least 1")
        if number * len(prompts) > MOST_OUTPUTS:
            raise UsageError(f"n ({number}) times {len(prompts)} prompts must be at most {MOST_OUTPUTS} outputs")
        stop = given.get("stop", [])
        stop = [stop] if isinstance(stop, str) else stop
        if not all(isinstance(word, str) and word for word in stop):
            raise UsageError(f"stop ({stop!r}) must be a non-empty string or a list of non-empty strings")
        choices = []
        for text, ids in prompts:
            sampling = self._sampling(given, len(ids), kind)
            for i in range(number):
                seed = (sampling.seed + i) % 2**64
                echo = text if given.get("echo", False) else ""
                choices.append(Choice(prompt=ids, sampling=replace(sampling, seed=seed), stop=tuple(stop), echo=echo))
        usage = bool(given.get("stream_options", {}).get("include_usage", False))
        return CompletionRequest(choices=tuple(choices), stream=given.get("stream", False), usage=usage)

    def _sampling(self, given: Mapping[str, Any], prompt: int, kind: str) -> SamplingParams:
        rest = max(self.limits.max_seq_len - prompt, 1)
        most = given.get("max_completion_tokens", given.get("max_tokens", rest if kind == "chat/completions" else 16))
        seed = given.get("seed")
        endless = given.get("ignore_eos", False)
        values = {field.name: given.get(field.name, field.default) for field in NUMBERS}
        values |= {
            "max_tokens": min(most, rest),
            "temperature": given.get("temperature", 1.0),
            "seed": random.getrandbits(64) if seed is None else seed % 2**64,
        }
        return SamplingParams(
            **values,
            end_id=-1 if endless else self.end_id,
            stop_words=() if endless else self.further_ends,
        )

    def _prompts(self, given: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        if "prompt" not in given:
            raise UsageError("prompt is missing")
        prompt = given["prompt"]
        several = isinstance(prompt, list) and set(map(type, prompt)) - {int}
        return [self._prompt(one) for one in (prompt if several else [prompt])]

    def _prompt(self, prompt: Any) -> tuple[str, tuple[int, ...]]:
        if isinstance(prompt, str):
            text, ids = prompt, self._ids(prompt, "prompt")
        elif isinstance(prompt, list) and not set(map(type, prompt)) - {int}:
            self.limits.check_tokens(prompt)
            text, ids = self.tokenizer.decode(prompt), tuple(prompt)
        else:
            raise UsageError(f"prompt ({prompt!r}) must be a string or a list of token ids, or a list of such prompts")
        if not ids:
            raise UsageError("prompt is empty: a request needs at least one token")
        return text, ids

    def _chat(self, given: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        messages = given.get("messages")
        if not messages:
            raise UsageError("messages is missing or empty")
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                raise UsageError(f"messages[{number}] must have a role and a content, both strings")
        text = self._render(messages)
        return [(text, self._ids(text, "messages", special=False))]

    def _ids(self, text: str, name: str, special: bool = True) -> tuple[int, ...]:
        try:
            check_bytes(len(text.encode()), self.most_bytes, name)
        except UnicodeEncodeError:
            raise UsageError(f"{name} contains an unpaired surrogate") from None
        return tuple(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of a chat, by the tokenizer's chat template. Raises UsageError if it has none or it fails."""
        config_path, template_path = self.folder / "tokenizer_config.json", self.folder / "chat_template.jinja"
        config = read_json(config_path) if config_path.exists() else {}
        template = template_path.read_text() if template_path.exists() else config.get("chat_template")
        if not isinstance(template, str):
            raise UsageError("this model has no chat template: use /v1/completions")
        tokens = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **tokens)
        except TemplateError as error:
            raise UsageError(f"messages do not fit the chat template: {error}") from None


def _checked(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body after checking their names and types. A field that is null counts as left out."""
    given = {}
    for name, value in body.items():
        if value is None or value in _NEUTRAL.get(name, ()):
            continue
        if name not in _FIELDS[kind]:
            raise UsageError(f"{name} is not supported")
        kinds = _FIELDS[kind][name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UsageError(f"{name} ({value!r}) must be {_words(kinds)}")
        given[name] = value
    return given


def _words(kinds: tuple[type, ...]) -> str:
    names = {
        str: "a string",
        list: "a list",
        bool: "true or false",
        dict: "an object",
        float: "a number",
        int: "a whole number",
    }
    return "a number" if float in kinds else " or ".join(names[kind] for kind in kinds)


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token or ""


def _refuse(message: str) -> None:
    raise TemplateError(message)
