"""Parses the JSON body of an HTTP request. Both HTTP ports of `serve` use it."""

from __future__ import annotations

import json
from typing import Any

from trtllm_pt.errors import UsageError


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises UsageError for anything else.

    NaN and infinities are not JSON. A key that an object has twice is refused, because readers of JSON differ in which
    of the values they take.
    """
    try:
        found = json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("the body must be a JSON object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} is in the body more than once")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
