"""TensorRT-LLM's enums, members from the catalogue, with the methods that are called here."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from typing import Any

from tests.backends.tensorrt_llm.standin.binding import bind


class _StrEnum(str, enum.Enum):
    """A member is its own name."""

    __str__ = str.__str__


KINDS: dict[str, type] = {"IntEnum": enum.IntEnum, "IntFlag": enum.IntFlag, "Enum": enum.Enum, "StrEnum": _StrEnum}


def _from_string(enumeration: type[enum.Enum]) -> Callable[[str], Any]:
    return lambda s: enumeration[s]


def _quant_mode(quant_algo: Any, kv_cache_quant_algo: Any, enumeration: Any) -> Any:
    weights = {
        None: 0,
        "W8A16": enumeration.INT8_WEIGHTS,
        "W4A16": enumeration.INT4_WEIGHTS,
        "FP8": enumeration.FP8_QDQ,
    }
    cache = {None: 0, "FP8": enumeration.FP8_KV_CACHE}
    return enumeration(weights[quant_algo] | cache[kv_cache_quant_algo])


# Methods by enum and name. A static method gets its enum as the last argument.
METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "PositionEmbeddingType": {"is_rope": lambda self: self.name in ("rope_gptj", "rope_gpt_neox", "long_rope")},
    "QuantMode": {
        "is_int8_weight_only": lambda self: self & self.WEIGHTS_AND_ACTIVATIONS == self.INT8_WEIGHTS,
        "is_int4_weight_only": lambda self: self & self.WEIGHTS_AND_ACTIVATIONS == self.INT4_WEIGHTS,
        "is_weight_only": lambda self: self.is_int8_weight_only() or self.is_int4_weight_only(),
        "has_fp8_qdq": lambda self: bool(self & self.FP8_QDQ),
        "has_fp8_kv_cache": lambda self: bool(self & self.FP8_KV_CACHE),
        "has_kv_cache_quant": lambda self: bool(self & (self.FP8_KV_CACHE | self.INT8_KV_CACHE | self.NVFP4_KV_CACHE)),
    },
}
STATIC: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "from_string": _from_string,
    "from_quant_algo": lambda enumeration: (
        lambda quant_algo, kv_cache_quant_algo: _quant_mode(quant_algo, kv_cache_quant_algo, enumeration)
    ),
}


def make(module: str, name: str, entry: dict[str, Any]) -> type:
    """The enum of a catalogue's entry."""
    known = METHODS.get(name, {})

    def body(namespace: dict[str, Any]) -> None:
        values: dict[str, Any] = {}
        for member, expression in entry["members"].items():
            values[member] = _value(entry["enum"], member, expression, values)
            namespace[member] = values[member]
        for method, text in entry["methods"].items():
            kind, _, signature = text.partition(" ")
            if kind == "method" and not method.startswith("__"):
                namespace[method] = bind(module, f"{name}.{method}", signature, known.get(method))

    made = types.new_class(name, (KINDS[entry["enum"]],), {}, body)
    for method, text in entry["methods"].items():
        kind, _, signature = text.partition(" ")
        if kind == "staticmethod":
            function = STATIC[method](made) if method in STATIC else None
            setattr(made, method, staticmethod(bind(module, f"{name}.{method}", signature, function)))
    made.__module__ = module
    return made


def _value(kind: str, member: str, expression: str, others: dict[str, Any]) -> Any:
    if expression != "auto()":
        return eval(expression, {}, dict(others))
    if kind == "StrEnum":
        return member
    return 1 << sum(value & (value - 1) == 0 for value in others.values()) if kind == "IntFlag" else len(others) + 1
