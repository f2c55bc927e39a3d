"""Divide a text into windows in which every token is predicted once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trtllm_pt.errors import UsageError


class Window(NamedTuple):
    """Tokens [begin, end) of a text, of which the last `predicted` are predicted from all those before them."""

    begin: int
    end: int
    predicted: int


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a text of so many tokens, of which the first is not predicted.

    The context of a token is at most `window` tokens. The first window predicts `window` tokens, and each further one
    the next `stride` tokens, so a token's context has at least window - stride + 1 tokens where the text has as many.
    These are the windows of lm-evaluation-harness's rolling log-likelihoods with a context of window - stride + 1.
    """
    done = 1
    while done < tokens:
        end = min(done + (window if done == 1 else stride), tokens)
        yield Window(max(0, end - window - 1), end, end - done)
        done = end


def check_windows(window: int, stride: int, longest: int) -> None:
    """Raise UsageError for windows that an engine cannot take. longest: the most tokens of a prompt."""
    if window >= longest:
        raise UsageError(f"--window ({window}) must be at most {longest - 1}: the engine takes {longest} tokens")
    if stride > window:
        raise UsageError(f"--stride ({stride}) must be at most --window ({window}), or tokens would be left out")
