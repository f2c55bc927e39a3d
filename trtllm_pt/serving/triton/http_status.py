"""What went wrong, in the words of Triton and its models, as HTTP knows it."""

from __future__ import annotations

import json
from typing import Any

# Where another moment, or another server, may do.
_UNAVAILABLE = (
    "queue is full",
    "maximum queue size",
    "engine is down",
    "timeout was over",
    "does not answer",
    "not ready",
    "not at ready state",
    "not healthy",
)
# Where Triton's HTTP server cannot make tensors of a request's JSON; it calls that an internal error.
_UNREADABLE = ("failed to parse", "Unable to parse", "attempt to")


def is_unavailable(words: str) -> bool:
    """Whether an error is 503 rather than what else it may be."""
    return any(known in words for known in _UNAVAILABLE)


def is_unreadable(words: str) -> bool:
    """Whether it is 400 although Triton says 500."""
    return any(known in words for known in _UNREADABLE)


def json_object(body: bytes) -> dict[str, Any]:
    """Raises ValueError where a body is none; NaN and infinities are no JSON."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("the body must be a JSON object")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")
