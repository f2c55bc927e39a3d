"""The sampling fields of a request: which values each may have."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import SamplingParams

WHOLE, NUMBER = "a whole number", "a number"
RANGES: dict[str, tuple[str, float, float, str]] = {  # field: kind, least, most, the range in words
    "max_tokens": (WHOLE, 1, math.inf, "at least 1"),
    "temperature": (NUMBER, 0, math.inf, "at least 0 (0: greedy)"),
    "top_k": (WHOLE, 0, math.inf, "at least 0 (0: no limit)"),
    "top_p": (NUMBER, math.ulp(0), 1, "above 0 and at most 1"),
    "min_p": (NUMBER, 0, 1, "between 0 and 1"),
    "repetition_penalty": (NUMBER, math.ulp(0), math.inf, "above 0 (1: none)"),
    "presence_penalty": ("a finite number", -math.inf, math.inf, ""),
    "frequency_penalty": ("a finite number", -math.inf, math.inf, ""),
    "seed": (WHOLE, 0, 2**64 - 1, "between 0 and 2**64 - 1"),
    "min_tokens": (WHOLE, 0, math.inf, "at least 0"),
}


def check_sampling(p: SamplingParams, vocab_size: int) -> None:
    """Raises UsageError for the first field with a value that makes no sense."""
    for problem in sampling_problems(p, vocab_size):
        raise UsageError(problem)


def sampling_problems(p: SamplingParams, vocab_size: int) -> Iterator[str]:
    for name, (kind, least, most, words) in RANGES.items():
        value = getattr(p, name)
        good = isinstance(value, int if kind == WHOLE else int | float) and not isinstance(value, bool)
        if not good or not -math.inf < value < math.inf or not least <= value <= most:
            yield f"{name} ({value!r}) must be {kind} {words}".rstrip()
    if p.min_tokens > p.max_tokens:
        yield f"min_tokens ({p.min_tokens}) must not exceed max_tokens ({p.max_tokens})"
    if not isinstance(p.log_probs, bool):
        yield f"log_probs ({p.log_probs!r}) must be true or false"
    if p.end_id is not None and p.end_id != -1 and not is_token(p.end_id, vocab_size):
        yield f"end_id ({p.end_id!r}) must be a token id between 0 and {vocab_size - 1}, or -1 for none"
    for name in ("stop_words", "bad_words"):
        for index, word in enumerate(getattr(p, name)):
            if not isinstance(word, tuple) or not word:
                yield f"{name}[{index}] ({word!r}) must be a sequence of at least one token id"
            elif not all(is_token(token, vocab_size) for token in word):
                yield f"{name}[{index}] ({list(word)}) must have token ids between 0 and {vocab_size - 1}"


def is_token(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
