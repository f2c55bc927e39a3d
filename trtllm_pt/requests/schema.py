"""JSON schemas as llguidance takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DEFINITIONS = ("$defs", "definitions")
_OPTIONS = {
    # Between two tokens of JSON. Without a bound, a model that repeats itself could fill its output with spaces.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}",
    # A schema could ask for these itself. They ignore what is not supported, so that an output need not be valid.
    "lenient": False,
    "coerce_one_of": False,
}


def prepared(schema: dict[str, Any] | bool) -> dict[str, Any]:
    """Return a schema with llguidance's options. Changes the schema in place, without a change of its meaning."""
    whole = schema if isinstance(schema, dict) else {"allOf": [schema]}  # the options need an object
    each: list[Any] = [whole]
    for part in each:
        if isinstance(part, dict):
            if "oneOf" in part:  # llguidance follows the references in it only if there is another keyword beside it
                part["x-beside"] = True
            each += (child for _, child in parts(part))
    return {**whole, "x-guidance": _OPTIONS}


def parts(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the schemas that are directly in a schema, with the names that lead to them."""
    for key, value in schema.items():
        if key in ("properties", "patternProperties", *DEFINITIONS) and isinstance(value, dict):
            yield from (((key, name), child) for name, child in value.items())
        elif key in ("items", "additionalProperties"):
            yield (key,), value
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            yield from (((key, str(number)), child) for number, child in enumerate(value))
