"""The table of sampling fields: the values that each may have, and its name at each border of the project.

The command line, OpenAI's endpoints, Triton's tensors and the checks of a request are derived from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import GuideType, SamplingParams

WHOLE, NUMBER = "a whole number", "a number"
FLAG, TEXT = "true or false", "text"
TOKEN, TOKENS, WORDS, BIASES = "a token id", "token ids", "sequences of token ids", "token ids with numbers"
_FLOAT_MAX = sys.float_info.max
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1  # what tensors and messages hold
_SMALLEST = 5e-324  # the smallest number above 0
_DEFAULTS = SamplingParams()
MOST_TOP_LOG_PROBS = 20  # as in OpenAI's API
_MOST_SALT_CHARACTERS = 256
_MOST_GUIDE_BYTES = 1 << 16  # a larger one would take seconds to compile


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of SamplingParams.

    The command line has an option for each number, and OpenAI's endpoints take each number, both under the field's own
    name. A number without a tensor reaches the Triton model `tensorrt_llm` as a parameter of the request, under its own
    name or under `renamed`.
    """

    name: str
    kind: str
    least: float = -_FLOAT_MAX
    most: float = _FLOAT_MAX
    range: str = ""  # from `least` to `most`, in words
    help: str = ""  # what a number does, for the help of the command line
    tensor: str | None = None  # its name among the inputs of Triton's model `tensorrt_llm`
    text_input: str | None = None  # its name among the inputs of the Triton models that take text
    tensor_type: Literal["INT32", "FP32", "UINT64", "BOOL", "STRING"] = "FP32"
    required: bool = False  # whether those models must be given it
    draws: bool = False  # whether it has no effect on greedy decoding
    reports: bool = False  # whether it asks for numbers about the tokens, and has no effect on them
    renamed: str | None = None  # its name as a parameter in Triton, where that has another meaning for the field's own
    schedules: bool = False  # whether it says how requests share the engine, and has no effect on the tokens

    @property
    def parameter(self) -> str:
        """Its name as a parameter of a request to Triton."""
        return self.renamed or self.name

    @property
    def default(self) -> Any:
        return getattr(_DEFAULTS, self.name)

    def problem(self, value: object) -> str | None:
        """What is wrong with a value of a number or a flag, in one sentence; None: nothing."""
        good = isinstance(value, bool) == (self.kind == FLAG) and isinstance(value, int | float)
        good = good and not (self.kind == WHOLE and isinstance(value, float))
        if good and self.least <= value <= self.most:  # type: ignore[operator]
            return None
        if good and self.most in (_INT32_MAX, _INT64_MAX) and value > self.most:  # type: ignore[operator]
            return f"{self.name} ({value}) must be at most {self.most}"
        return f"{self.name} ({value!r}) must be {self.kind} {self.range}".rstrip()


FIELDS = (
    Field(
        name="max_tokens",
        kind=WHOLE,
        least=1,
        most=_INT64_MAX,
        range="at least 1",
        help="Maximum number of new tokens",
        tensor="request_output_len",
        text_input="max_tokens",
        tensor_type="INT32",
        required=True,
    ),
    Field(
        name="temperature",
        kind=NUMBER,
        least=0,
        range="at least 0 (0: greedy)",
        help="Sampling temperature",
        tensor="temperature",
        text_input="temperature",
        draws=True,
    ),
    Field(
        name="top_k",
        kind=WHOLE,
        least=0,
        most=_INT32_MAX,
        range="at least 0 (0: no limit)",
        help="Number of the likeliest tokens to sample from",
        tensor="runtime_top_k",
        text_input="top_k",
        tensor_type="INT32",
        draws=True,
    ),
    Field(
        name="top_p",
        kind=NUMBER,
        least=_SMALLEST,
        most=1,
        range="above 0 and at most 1",
        help="Cumulative probability for nucleus sampling",
        tensor="runtime_top_p",
        text_input="top_p",
        draws=True,
    ),
    Field(
        name="min_p",
        kind=NUMBER,
        least=0,
        most=1,
        range="between 0 and 1",
        help="Minimum probability of a token relative to the likeliest one",
        draws=True,
    ),
    Field(
        name="repetition_penalty",
        kind=NUMBER,
        least=_SMALLEST,
        range="above 0 (1: none)",
        help="Penalty for tokens of the prompt and the output",
        tensor="repetition_penalty",
        text_input="repetition_penalty",
    ),
    Field(
        name="presence_penalty",
        kind="a finite number",
        help="Penalty for tokens of the output",
        tensor="presence_penalty",
        text_input="presence_penalty",
    ),
    Field(
        name="frequency_penalty",
        kind="a finite number",
        help="Penalty for each occurrence of a token in the output",
        tensor="frequency_penalty",
        text_input="frequency_penalty",
    ),
    Field(
        name="seed",
        kind=WHOLE,
        least=0,
        most=2**64 - 1,
        range="between 0 and 2**64 - 1",
        help="Random seed; the same seed gives the same text",
        tensor="seed",
        text_input="seed",
        tensor_type="UINT64",
        draws=True,
    ),
    Field(
        name="min_tokens",
        kind=WHOLE,
        least=0,
        most=_INT64_MAX,
        range="at least 0",
        help="Minimum number of new tokens before an end token or a stop word",
        tensor="min_tokens",
        text_input="min_tokens",
        tensor_type="INT32",
    ),
    Field(name="end_id", kind=TOKEN, tensor="end_id", text_input="end_id", tensor_type="INT32"),
    Field(name="stop_token_ids", kind=TOKENS),
    Field(name="stop_words", kind=WORDS, tensor="stop_words_list", text_input="stop_words", tensor_type="INT32"),
    Field(name="include_stop_words", kind=FLAG),
    Field(
        name="logit_bias", kind=BIASES, tensor="embedding_bias", text_input="embedding_bias_words", tensor_type="FP32"
    ),
    Field(name="bad_words", kind=WORDS, tensor="bad_words_list", text_input="bad_words", tensor_type="INT32"),
    Field(
        name="guide_type",
        kind=TEXT,
        tensor="guided_decoding_guide_type",
        text_input="guided_decoding_guide_type",
        tensor_type="STRING",
    ),
    Field(
        name="guide",
        kind=TEXT,
        tensor="guided_decoding_guide",
        text_input="guided_decoding_guide",
        tensor_type="STRING",
    ),
    Field(
        name="log_probs",
        kind=FLAG,
        tensor="return_log_probs",
        text_input="return_log_probs",
        tensor_type="BOOL",
        reports=True,
    ),
    Field(name="top_log_probs", kind=WHOLE, least=0, most=MOST_TOP_LOG_PROBS, range="between 0 and 20", reports=True),
    Field(name="processed_log_probs", kind=FLAG, reports=True),
    Field(name="prompt_log_probs", kind=FLAG, reports=True),
    *(
        Field(
            name=name,
            kind=FLAG,
            tensor=f"return_{name}",
            text_input=f"return_{name}",
            tensor_type="BOOL",
            reports=True,
        )
        for name in ("context_logits", "generation_logits")
    ),
    Field(
        name="priority",
        kind=WHOLE,
        least=-(2**31),
        most=_INT32_MAX,
        range="at least -2147483648",
        help="Place among the waiting requests: the lowest number runs first",
        renamed="queue_priority",
        schedules=True,
    ),
    Field(name="cache_salt", kind=TEXT, schedules=True),
)
NUMBERS = tuple(
    field
    for field in FIELDS
    if field.kind not in (FLAG, TEXT, TOKEN, TOKENS, WORDS, BIASES) and not (field.reports or field.schedules)
)
# Fields that reach our Triton model `tensorrt_llm` as parameters of a request, because they have no tensor.
PARAMETERS = tuple(f for f in FIELDS if f.tensor is None and (f in NUMBERS or f.reports or f.schedules))


def check_sampling(p: SamplingParams, vocab_size: int) -> None:
    """Raises UsageError for the first field with a value that makes no sense."""
    for problem in sampling_problems(p, vocab_size):
        raise UsageError(problem)


def sampling_problems(p: SamplingParams, vocab_size: int) -> Iterator[str]:
    for field in FIELDS:
        value = getattr(p, field.name)
        if field.kind == TEXT:
            continue
        if field.kind in _PROBLEMS:
            yield from _PROBLEMS[field.kind](field.name, value, vocab_size)
        elif (problem := field.problem(value)) and not (field.name == "max_tokens" and _scores_only(p)):
            yield problem
    yield from _guide_problems(p)
    yield from _salt_problems(p.cache_salt)
    if p.top_log_probs and not (p.log_probs or p.prompt_log_probs):
        yield f"top_log_probs ({p.top_log_probs}) needs log_probs or prompt_log_probs"
    if p.processed_log_probs and not p.log_probs:
        yield "processed_log_probs (True) needs log_probs"
    if p.min_tokens > p.max_tokens:
        yield f"min_tokens ({p.min_tokens}) must not exceed max_tokens ({p.max_tokens})"


def _scores_only(p: SamplingParams) -> bool:
    """Return whether a request asks for nothing but the log-probs of its prompt."""
    return p.prompt_log_probs is True and p.max_tokens == 0 and isinstance(p.max_tokens, int)


def _guide_problems(p: SamplingParams) -> Iterator[str]:
    if p.guide_type not in (None, *get_args(GuideType)):
        yield f"guide_type ({p.guide_type!r}) must be one of {', '.join(get_args(GuideType))}"
    elif not isinstance(p.guide, str):
        yield f"guide ({p.guide!r}) must be a text"
    elif p.guide_type in (None, "json"):
        if p.guide:
            yield f"guide must be empty where guide_type is {p.guide_type or 'not given'}"
    elif not p.guide:
        yield f"guide is missing: guide_type {p.guide_type} needs one"
    elif any("\ud800" <= character <= "\udfff" for character in p.guide):
        yield "guide is not valid UTF-8: it contains an unpaired surrogate"
    elif (size := len(p.guide.encode())) > _MOST_GUIDE_BYTES:
        yield f"guide has {size} bytes, but must have at most {_MOST_GUIDE_BYTES}"


def _token_problems(name: str, token: Any, vocab_size: int) -> Iterator[str]:
    if token is not None and token != -1 and not is_token(token, vocab_size):
        yield f"{name} ({token!r}) must be a token id between 0 and {vocab_size - 1}, or -1 for none"


def _tokens_problems(name: str, tokens: tuple[Any, ...], vocab_size: int) -> Iterator[str]:
    for index, token in enumerate(tokens):
        if not is_token(token, vocab_size):
            yield f"{name}[{index}] ({token!r}) must be a token id between 0 and {vocab_size - 1}"


def _bias_problems(name: str, biases: tuple[tuple[Any, Any], ...], vocab_size: int) -> Iterator[str]:
    for token, bias in biases:
        if not is_token(token, vocab_size):
            yield f"{name} ({token!r}) must name token ids between 0 and {vocab_size - 1}"
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -_FLOAT_MAX <= bias <= _FLOAT_MAX:
            yield f"{name} of token {token} ({bias!r}) must be a finite number"


def _salt_problems(salt: Any) -> Iterator[str]:
    good = isinstance(salt, str) and len(salt) <= _MOST_SALT_CHARACTERS
    if not good or any("\ud800" <= character <= "\udfff" for character in salt):
        shown = salt if len(str(salt)) <= 40 else f"{str(salt)[:40]}…"
        yield f"cache_salt ({shown!r}) must be a text of at most {_MOST_SALT_CHARACTERS} characters"


def _word_problems(name: str, words: tuple[Any, ...], vocab_size: int) -> Iterator[str]:
    for index, word in enumerate(words):
        if not isinstance(word, tuple) or not word:
            yield f"{name}[{index}] ({word!r}) must be a sequence of at least one token id"
        elif not all(is_token(token, vocab_size) for token in word):
            yield f"{name}[{index}] ({list(word)}) must have token ids between 0 and {vocab_size - 1}"


_PROBLEMS = {
    TOKEN: _token_problems,
    TOKENS: _tokens_problems,
    WORDS: _word_problems,
    BIASES: _bias_problems,
}


def is_token(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def given_numbers(p: SamplingParams) -> Iterator[tuple[Field, int | float]]:
    """The numbers that a request to Triton must name, with their values.

    TensorRT-LLM's Triton models decode greedily unless top_k or top_p is given. So those are left out at temperature 0,
    with all that affects draws only, and named above it even at their defaults.
    """
    for field in NUMBERS:
        value = getattr(p, field.name)
        if field.draws and p.temperature == 0:
            continue
        if field.required or value != field.default or field.name in ("top_k", "top_p"):
            yield field, value
