"""Parses the bodies of OpenAI's completions and chat completions into prompts and sampling parameters."""

from __future__ import annotations

import json
import random
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import MOST_TOP_LOG_PROBS, NUMBERS, WHOLE
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.serving.openai import guides, tools
from trtllm_pt.serving.openai.chat_template import ChatTemplate, Message
from trtllm_pt.serving.openai.tools import ToolFormat, ToolUse
from trtllm_pt.serving.triton.models.preprocessing import check_bytes
from trtllm_pt.serving.triton.models.request import MOST_OUTPUTS

MOST_BIAS = 100  # of a logit, as in OpenAI's API
_SHOWN = 80  # the most characters of a value in a message
_NUMBER, _WHOLE, _FLAG = (int, float), (int,), (bool,)
_SHARED: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "n": _WHOLE,
    "stream": _FLAG,
    "stream_options": (dict,),
    "stop": (str, list),
    "user": (str,),
    "logit_bias": (dict,),
    # Not OpenAI's, but vLLM and other servers have them.
    "ignore_eos": _FLAG,
    "stop_token_ids": (list,),
    "include_stop_str_in_output": _FLAG,
    "skip_special_tokens": _FLAG,
    "priority": _WHOLE,
    "cache_salt": (str,),
    **guides.FIELDS,
    **{field.name: _WHOLE if field.kind == WHOLE else _NUMBER for field in NUMBERS},
}
_CHAT: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "add_generation_prompt": _FLAG,
    "continue_final_message": _FLAG,
}
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "completions": {**_SHARED, "prompt": (str, list), "echo": _FLAG, "best_of": _WHOLE, "logprobs": _WHOLE},
    "chat/completions": {
        **_SHARED,
        **_CHAT,
        "max_completion_tokens": _WHOLE,
        "logprobs": _FLAG,
        "top_logprobs": _WHOLE,
        "tools": (list,),
        "tool_choice": (str, dict),
        "parallel_tool_calls": _FLAG,
        "prompt_cache_key": (str,),  # this and the next one name the user, as `user` does
        "safety_identifier": (str,),
    },
    # The rest is vLLM's.
    "tokenize": {**_CHAT, "model": (str,), "prompt": (str,), "add_special_tokens": _FLAG, "return_token_strs": _FLAG},
    "detokenize": {"model": (str,), "tokens": (list,)},
}
# Fields of OpenAI's that are not supported, with the values that ask for nothing, such as OpenAI's defaults. These
# values are accepted and ignored.
_NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "completions": {"suffix": ("",)},
    "chat/completions": {
        "function_call": ("none", "auto"),
        "functions": ([],),
        "metadata": ({},),
        "modalities": (["text"],),
        "prompt_cache_retention": ("in_memory",),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
    },
    "tokenize": {},
    "detokenize": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of a response: its prompt in token ids, its sampling parameters, and how its text is made."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]  # stop strings, which are part of the text if the sampling includes stop words
    skip_special_tokens: bool  # whether the text leaves out special tokens
    echo: str  # text that precedes the generated text; empty, or the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A parsed request: its choices in order, and the form of the response."""

    choices: tuple[Choice, ...]
    stream: bool
    usage: bool  # whether a stream ends with the usage
    continuous_usage: bool  # whether every event has the usage so far
    tools: ToolUse | None = None  # None: the output is text
    tool_format: ToolFormat | None = None  # of the calls in outputs, if there are tools


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParser:
    """Parses the requests to one engine. `end_id` is the tokenizer's end token, or -1 if it has none."""

    tokenizer: Tokenizer
    end_id: int
    further_ends: tuple[int, ...]  # the tokenizer's other end tokens
    limits: Limits
    most_bytes: int  # the longest prompt, in UTF-8
    template: ChatTemplate

    def parse(self, kind: str, body: Mapping[str, Any]) -> CompletionRequest:
        """Parse the body of a request. kind: `completions` or `chat/completions`.

        Raises UsageError, naming the field, for a field that is missing, unknown or wrong.
        """
        given = _checked(kind, body)
        use = tools.tool_use(given) if kind == "chat/completions" else None
        prompts = self._chat(given, use) if kind == "chat/completions" else self._prompts(given)
        number = given.get("n", 1)
        if number < 1:
            raise UsageError(f"n ({number}) must be at least 1")
        if number * len(prompts) > MOST_OUTPUTS:
            raise UsageError(f"n ({number}) times {len(prompts)} prompts must be at most {MOST_OUTPUTS} outputs")
        if given.get("best_of", number) != number:
            raise UsageError(f"best_of ({given['best_of']}) must equal n ({number}): other values are not supported")
        stop = given.get("stop", [])
        stop = [stop] if isinstance(stop, str) else stop
        if not all(isinstance(word, str) and word for word in stop):
            raise UsageError(f"stop ({stop!r}) must be a non-empty string or a list of non-empty strings")
        skip = given.get("skip_special_tokens", True)
        guide = self._guide(given, use)
        choices = []
        for text, ids in prompts:
            sampling = replace(self._sampling(given, len(ids), kind), **guide)
            for i in range(number):
                seed = (sampling.seed + i) % 2**64
                choices.append(
                    Choice(
                        prompt=ids,
                        sampling=replace(sampling, seed=seed),
                        stop=tuple(stop),
                        skip_special_tokens=skip,
                        echo=text if given.get("echo", False) else "",
                    )
                )
        usage, continuous = _usage(given)
        return CompletionRequest(
            choices=tuple(choices),
            stream=given.get("stream", False),
            usage=usage,
            continuous_usage=continuous,
            tools=use,
            tool_format=self.template.tool_format if use else None,
        )

    def _guide(self, given: Mapping[str, Any], use: ToolUse | None) -> dict[str, Any]:
        """Return the fields of SamplingParams that constrain the output."""
        guide, call = guides.guide_of(given), use.guide(self.template.tool_format) if use else None
        if guide and call:
            raise UsageError("tool_choice cannot be combined with another guide: an output has one guide")
        guide_type, text = guide or call or (None, "")
        return {"guide_type": guide_type, "guide": text}

    def tokenize(self, body: Mapping[str, Any]) -> tuple[list[int], list[str | None] | None]:
        """Return the tokens of a prompt or of a chat, and the texts of the tokens if the body asks for them.

        Errors are as in `parse`.
        """
        given = _checked("tokenize", body)
        if ("prompt" in given) == ("messages" in given):
            raise UsageError("a body for /tokenize must have either prompt or messages")
        name, text = ("prompt", given["prompt"]) if "prompt" in given else ("messages", self._chat_text(given))
        tokens = self._ids(text, name, given.get("add_special_tokens", name == "prompt"))
        strings = [self.tokenizer.id_to_token(token) for token in tokens]
        return list(tokens), strings if given.get("return_token_strs", False) else None

    def detokenize(self, body: Mapping[str, Any]) -> str:
        """Return the text of the tokens in a body. Errors are as in `parse`."""
        given = _checked("detokenize", body)
        if "tokens" not in given:
            raise UsageError("tokens is missing")
        self.limits.check_tokens(given["tokens"])
        return str(self.tokenizer.decode(given["tokens"], skip_special_tokens=False))

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
        if given.get("top_p") == 0:  # OpenAI's smallest value, which leaves one token
            values |= {"temperature": 0.0, "top_p": 1.0}
        return SamplingParams(
            **values,
            end_id=-1 if endless else self.end_id,
            stop_token_ids=(*given.get("stop_token_ids", ()), *(() if endless else self.further_ends)),
            include_stop_words=given.get("include_stop_str_in_output", False),
            logit_bias=_logit_bias(given.get("logit_bias", {})),
            priority=given.get("priority", 0),
            cache_salt=given.get("cache_salt", ""),
            **_log_probs(given),
        )

    def _prompts(self, given: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        if "prompt" not in given:
            raise UsageError("prompt is missing")
        prompt = given["prompt"]
        several = isinstance(prompt, list) and set(map(type, prompt)) - {int}
        special = not given.get("skip_special_tokens", True)
        return [self._prompt(one, special) for one in (prompt if several else [prompt])]

    def _prompt(self, prompt: Any, special: bool) -> tuple[str, tuple[int, ...]]:
        if isinstance(prompt, str):
            text, ids = prompt, self._ids(prompt, "prompt")
        elif isinstance(prompt, list) and not set(map(type, prompt)) - {int}:
            self.limits.check_tokens(prompt)
            text, ids = self.tokenizer.decode(prompt, skip_special_tokens=not special), tuple(prompt)
        else:
            raise UsageError(f"prompt ({prompt!r}) must be a string or a list of token ids, or a list of such prompts")
        if not ids:
            raise UsageError("prompt is empty: a request needs at least one token")
        return text, ids

    def _chat(self, given: Mapping[str, Any], use: ToolUse | None) -> list[tuple[str, tuple[int, ...]]]:
        text = self._chat_text(given, use)
        return [(text, self._ids(text, "messages", special=False))]

    def _chat_text(self, given: Mapping[str, Any], use: ToolUse | None = None) -> str:
        messages = given.get("messages")
        if not messages:
            raise UsageError("messages is missing or empty")
        continues = given.get("continue_final_message", False)
        begins = given.get("add_generation_prompt", not continues)
        if continues and begins:
            raise UsageError(
                "continue_final_message (True) and add_generation_prompt (True) cannot be combined: "
                "a message is either continued or begun"
            )
        chat = [_message(f"messages[{number}]", message) for number, message in enumerate(messages)]
        if use:
            _ = self.template.tool_format  # which refuses a template without tools
        told = use.tools if use else ()
        return self.template.render(chat, tools=told, add_generation_prompt=begins, continue_final_message=continues)

    def _ids(self, text: str, name: str, special: bool = True) -> tuple[int, ...]:
        try:
            check_bytes(len(text.encode()), self.most_bytes, name)
        except UnicodeEncodeError:
            raise UsageError(f"{name} contains an unpaired surrogate") from None
        return tuple(self.tokenizer.encode(text, add_special_tokens=special).ids)


def _message(name: str, message: Any) -> Message:
    """Return a message after checking it. name: its place in the body, for messages."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UsageError(f"{name} must be an object with a role, which is a string")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str | list):
        raise UsageError(f"{name} must have a content that is a string or a list of text parts")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UsageError(
                f'{name}.content[{number}] must be {{"type": "text", "text": …}}: other parts are not supported'
            )
    if not content and isinstance(content, list):
        raise UsageError(f"{name}.content must have at least one part")
    return tools.with_arguments(name, message)


def _checked(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a body after checking their names and types. A field that is null counts as left out."""
    given = {}
    neutral = _NEUTRAL[kind]
    for name, value in body.items():
        if value is None or _is_one_of(value, neutral.get(name, ())):
            continue
        if name in neutral:
            shown = textwrap.shorten(json.dumps(value), _SHOWN, placeholder=" …")
            accepted = " or ".join(map(json.dumps, neutral[name]))
            raise UsageError(f"{name} ({shown}) is not supported: leave it out, or set it to {accepted}")
        if name not in _FIELDS[kind]:
            raise UsageError(f"{name} is not supported")
        given[name] = _typed(name, value, _FIELDS[kind][name])
    return given


def _is_one_of(value: Any, accepted: Sequence[Any]) -> bool:
    """Return whether a value is among the accepted ones. For Python, True is 1 and False is 0; here they differ."""
    return any(type(value) is type(other) and value == other for other in accepted)


def _typed(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UsageError(f"{name} ({value!r}) must be {_words(kinds)}")
    return value


def _usage(given: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether a stream ends with the usage, and whether every event has it, as stream_options asks."""
    if "stream_options" in given and not given.get("stream", False):
        raise UsageError("stream_options needs stream to be true")
    asked = {"include_usage": False, "continuous_usage_stats": False}
    for name, value in given.get("stream_options", {}).items():
        if value is None or (name == "include_obfuscation" and value is False):
            continue
        if name not in asked:
            raise UsageError(f"stream_options.{name} is not supported")
        asked[name] = _typed(f"stream_options.{name}", value, _FLAG)
    usage, continuous = asked.values()
    if continuous and not usage:
        raise UsageError("stream_options.continuous_usage_stats needs include_usage to be true")
    return usage, continuous


def _logit_bias(given: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """Return the biases of tokens, whose ids are the names of a JSON object."""
    for token, bias in given.items():
        if not token.isdecimal():
            raise UsageError(f"logit_bias ({token!r}) must name tokens by their ids")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -MOST_BIAS <= bias <= MOST_BIAS:
            raise UsageError(
                f"logit_bias of token {token} ({bias!r}) must be a number between -{MOST_BIAS} and {MOST_BIAS}"
            )
    return tuple((int(token), float(bias)) for token, bias in given.items())


def _log_probs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of SamplingParams that ask for log-probs.

    Completions ask with a number, that of the likeliest tokens beside each token; chats ask with true, and name the
    number in top_logprobs. `echo` asks for the prompt's, too.
    """
    wanted = given.get("logprobs", False)
    name, number = ("top_logprobs", given.get("top_logprobs", 0)) if isinstance(wanted, bool) else ("logprobs", wanted)
    if not 0 <= number <= MOST_TOP_LOG_PROBS:
        raise UsageError(f"{name} ({number}) must be between 0 and {MOST_TOP_LOG_PROBS}")
    if wanted is False and number:
        raise UsageError(f"top_logprobs ({number}) needs logprobs to be true")
    echo, asked = given.get("echo", False), wanted is not False
    return {
        "log_probs": asked,
        "top_log_probs": number,
        "prompt_log_probs": echo and (asked or given.get("max_tokens") == 0),
    }


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
