"""Reads guides: translates them for llguidance, and says what is wrong with one, and where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from llguidance import LLMatcher, grammar_from

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import GuideType
from trtllm_pt.requests.schema import DEFINITIONS, parts, prepared

_NAMES: dict[GuideType, str] = {
    "json": "JSON",
    "json_schema": "the JSON schema",
    "regex": "the regular expression",
    "ebnf_grammar": "the grammar",
    "choice": "the list of choices",
}
_MOST_STEPS = 100  # from the root of a schema to the place of an error; a schema can refer to itself


def translated(guide_type: GuideType, guide: str) -> str:
    """Return a guide in llguidance's own form. Raises UsageError for what is not even JSON, or not even a grammar."""
    match guide_type:
        case "json":
            return _of_schema({})
        case "json_schema":
            schema = _parsed(guide_type, guide)
            if not isinstance(schema, dict | bool):
                raise UsageError("the JSON schema must be a JSON object")
            return _of_schema(schema)
        case "choice":
            choices = _parsed(guide_type, guide)
            if not (isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices)):
                raise UsageError("the list of choices must be a JSON list of at least one string")
            return grammar_from("choice", guide)
        case "regex":
            return grammar_from("regex", guide)
        case "ebnf_grammar":
            try:
                return grammar_from("grammar", guide)
            except ValueError as error:
                raise UsageError(f"the grammar: {one_line(str(error).rpartition('to Lark: ')[2])}") from None


def described(guide_type: GuideType, guide: str, error: str, check: Callable[[str], str]) -> str:
    """Return llguidance's error about a guide as one line that names the place.

    check: returns what llguidance says of a translated guide; empty: nothing.
    """
    name = _NAMES[guide_type]
    if error.startswith("NoExtension"):
        return f"{name}: no text matches it"
    if re.search("fuel|limit|max is|too (big|large|many)", error):
        return f"{name} is too complex: {one_line(error)}"
    if guide_type == "json_schema":
        place = _place(json.loads(guide), error, lambda schema: check(_of_schema(schema)))
        return f"{name} at {place}: {_schema_error(error)}"
    if guide_type == "regex" and (found := re.search(r"parse error:\n    .*\n    ( *)\^.*\nerror: (.*)", error)):
        return f"{name} at character {len(found[1]) + 1}: {found[2]}"
    if found := re.match(r"(?:at )?(\d+)\((\d+)\): (?:failed to compile JSON schema: )?(.*)", error):
        line = guide.split("\n")[int(found[1]) - 1] if "::=" not in guide else ""
        rule = f" ({line.partition(':')[0]})" if ": %json" in line else ""
        return f"{name} at line {found[1]}, character {found[2]}{rule}: {_schema_error(found[3])}"
    return f"{name}: {one_line(error)}"


def one_line(error: str) -> str:
    """Return an error of llguidance without line breaks and without what it says about its own state."""
    return " ".join(error.replace("<non-verbose/>", "").split())


def _parsed(guide_type: GuideType, guide: str) -> Any:
    try:
        return json.loads(guide, parse_constant=_no_constant)
    except ValueError as error:
        raise UsageError(f"{_NAMES[guide_type]} is not JSON: {error}") from None
    except RecursionError:
        raise UsageError(f"{_NAMES[guide_type]} is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _of_schema(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(prepared(schema)))


def _schema_error(error: str) -> str:
    if found := re.fullmatch(r"Unimplemented keys: (\[.*\])", error):
        return f"{', '.join(json.loads(found[1]))} is not supported"
    if error.startswith("oneOf constraints"):
        return "oneOf is supported only where no value can match two of its schemas"
    return one_line(error)


def _place(schema: Any, error: str, check: Callable[[Any], str]) -> str:
    """Return the JSON pointer of the innermost part of a schema that has an error by itself."""
    place, part = "#", schema
    shared = {name: schema[name] for name in DEFINITIONS if isinstance(schema, dict) and name in schema}
    for _ in range(_MOST_STEPS):
        for inner, child in _used(place, part, schema):
            if check({**shared, **child} if isinstance(child, dict) else child) == error:
                place, part = inner, child
                break
        else:
            break
    return place


def _used(place: str, part: Any, schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas that a part of a schema uses, with their JSON pointers."""
    if not isinstance(part, dict):
        return
    reference = part.get("$ref")
    if isinstance(reference, str) and (target := _target(schema, reference)) is not None:
        yield reference, target
    for inner, child in parts(part):
        if inner[0] not in DEFINITIONS:
            yield "/".join((place, *map(_escaped, inner))), child


def _target(schema: Any, pointer: str) -> Any:
    """Return the part of a schema at a JSON pointer such as `#/$defs/name`, or None if there is none."""
    part = schema
    for step in pointer.removeprefix("#/").split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(part, dict) or name not in part:
            return None
        part = part[name]
    return part


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
