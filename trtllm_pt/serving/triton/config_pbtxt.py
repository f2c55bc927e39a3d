"""Protobuf text: Triton's config.pbtxt files, as people would write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from trtllm_pt.serving.triton.tensors import Tensor

_WIDTH = 120

Value = Union["Word", str, int, bool, Mapping[str, "Value"], Sequence["Value"]]


@dataclass(frozen=True, slots=True)
class Word:
    """The name of an enum's value: it stands without quotes."""

    text: str


def render(message: Mapping[str, Value]) -> str:
    """A message's fields, one a line; a list repeats its field where it holds messages."""
    return "".join(f"{line}\n" for name, value in message.items() for line in _field(name, value))


def tensor(t: Tensor) -> Mapping[str, Value]:
    """The message of an input or output."""
    fields: dict[str, Value] = {"name": t.name, "data_type": Word(f"TYPE_{t.type}"), "dims": t.dims}
    if t.scalar:
        fields["reshape"] = {"shape": ()}
    if t.optional:
        fields["optional"] = True
    if t.ragged:
        fields["allow_ragged_batch"] = True
    return fields


def _field(name: str, value: Value, width: int = _WIDTH) -> Iterator[str]:
    """On one line where it fits."""
    head = name if isinstance(value, Mapping) or _has_messages(value) else f"{name}:"
    yield from _lines(f"{head} ", value, "", width)


def _lines(head: str, value: Value, tail: str, width: int) -> Iterator[str]:
    line = f"{head}{_inline(value)}{tail}"
    if isinstance(value, Mapping) and len(line) > width:
        yield f"{head}{{"
        for name, inner in value.items():
            yield from (f"  {line}" for line in _field(name, inner, width - 2))
        yield f"}}{tail}"
    elif _has_messages(value):
        assert not isinstance(value, Word | str | int | Mapping)
        yield f"{head}["
        for number, item in enumerate(value, 1):
            comma = "," if number < len(value) else ""
            yield from (f"  {line}" for line in _lines("", item, comma, width - 2))
        yield f"]{tail}"
    else:
        yield line


def _has_messages(value: Value) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def _inline(value: Value) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Mapping):
        fields = (
            f"{name}{'' if isinstance(inner, Mapping) else ':'} {_inline(inner)}" for name, inner in value.items()
        )
        return f"{{ {' '.join(fields)} }}" if value else "{}"
    return f"[{', '.join(map(_inline, value))}]"
