"""The fields of OpenAI's and vLLM's requests that constrain outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import GuideType

Guide = tuple[GuideType, str]
_OBJECT: Guide = ("json_schema", '{"type": "object"}')
# vLLM's names of guides, in structured_outputs and, after `guided_`, as fields of their own.
_VLLM: Mapping[str, GuideType] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "ebnf_grammar",
}
FIELDS: Mapping[str, tuple[type, ...]] = {
    "response_format": (dict,),
    "structured_outputs": (dict,),
    "guided_json": (dict, str),
    "guided_regex": (str,),
    "guided_choice": (list,),
    "guided_grammar": (str,),
}


def guide_of(given: Mapping[str, Any]) -> Guide | None:
    """Return the guide of a request, if it has one. given: the fields of its body, which are of the types in FIELDS.

    Raises UsageError, naming the field, for a form that is not supported and for two guides.
    """
    found = [*_guides(given)]
    if len(found) > 1:
        raise UsageError(f"{found[0][0]} and {found[1][0]} cannot be combined: an output has one guide")
    return found[0][1] if found else None


def _guides(given: Mapping[str, Any]) -> Iterator[tuple[str, Guide]]:
    """Yield the guides of a request, each with the name of its field."""
    if guide := _response_format(given.get("response_format", {"type": "text"})):
        yield "response_format", guide
    for name, value in given.get("structured_outputs", {}).items():
        field = f"structured_outputs.{name}"
        if name == "json_object" and value is True:
            yield field, _OBJECT
        elif name in _VLLM and value is not None:
            yield field, (_VLLM[name], _text(name, field, value))
        elif value not in (None, False):
            raise UsageError(f"{field} is not supported: it must be one of {', '.join(_VLLM)}, json_object")
    for name, guide_type in _VLLM.items():
        if (field := f"guided_{name}") in given:
            yield field, (guide_type, _text(name, field, given[field]))


def _response_format(value: Mapping[str, Any]) -> Guide | None:
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return _OBJECT
        case "json_schema":
            wrapper = value.get("json_schema")
            schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
            if not isinstance(schema, dict):
                raise UsageError("response_format.json_schema.schema must be an object")
            return "json_schema", json.dumps(schema)
    raise UsageError(f"response_format.type ({value.get('type')!r}) must be text, json_object or json_schema")


def _text(name: str, field: str, value: Any) -> str:
    """Return a guide as SamplingParams has it. vLLM takes schemas as objects and as texts."""
    if name == "choice":
        if not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            raise UsageError(f"{field} must be a list of at least one string")
        return json.dumps(value)
    if name == "json" and isinstance(value, dict):
        return json.dumps(value)
    if not (isinstance(value, str) and value):
        raise UsageError(f"{field} must be {'an object or a ' if name == 'json' else 'a non-empty '}string")
    return value
