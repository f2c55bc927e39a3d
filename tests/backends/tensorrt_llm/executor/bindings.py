"""A stand-in for the module tensorrt_llm.bindings.executor, held to the real one's names and types (bindings.json).

Every constructor, method, attribute and enum member is checked as the C++ bindings check it: an unknown keyword, a
missing or misplaced argument, a wrong type, an attribute that is not there or cannot be set is an error. What the
executor does is in engine.py.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CATALOGUE = json.loads(Path(__file__).with_name("bindings.json").read_text())

Parameter = tuple[str, str, str, str]  # name, kind, "required" or "optional", C++ type
_WHOLE = {"SizeType32": 31, "TokenIdType": 31, "IdType": 64, "RandomSeedType": 64, "size_t": 64, "uint64_t": 64}


def load(catalogue: Mapping[str, Any] = CATALOGUE, methods: Mapping[str, type] | None = None) -> Any:
    """The module. methods: by class, what its objects do; only what the catalogue has can be called."""
    module = SimpleNamespace()
    for name, members in catalogue["enums"].items():
        setattr(module, name, enum.Enum(name, members))  # type: ignore[misc]
    for name, spec in catalogue["classes"].items():
        setattr(module, name, _held(module, name, spec, (methods or {}).get(name)))
    return module


def make(cls: type, **values: Any) -> Any:
    """An object as C++ makes it, without its Python constructor."""
    made = cls.__new__(cls)
    made.__dict__["values"] = values
    return made


def _held(module: Any, name: str, spec: Mapping[str, Any], does: type | None) -> type:
    attributes: Mapping[str, str] = spec.get("attributes", {})

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__dict__["values"] = _bind(module, name, spec.get("init", []), args, kwargs)
        if hasattr(does, "start"):
            self.__dict__["does"] = does.start(module, **self.values)  # type: ignore[union-attr]

    def __getattr__(self: Any, attribute: str) -> Any:
        if attribute not in attributes:
            raise AttributeError(f"{name!r} object has no attribute {attribute!r}")
        return self.values.get(attribute)

    def __setattr__(self: Any, attribute: str, value: Any) -> None:
        if attributes.get(attribute) != "rw":
            raise AttributeError(f"{name!r} object has no writable attribute {attribute!r}")
        self.values[attribute] = value

    body: dict[str, Any] = {"__init__": __init__, "__getattr__": __getattr__, "__setattr__": __setattr__}
    for method, overloads in spec.get("methods", {}).items():
        if does is not None and hasattr(does, method):
            body[method] = _method(module, f"{name}.{method}", overloads, getattr(does, method))
    return type(name, (), body)


def _method(module: Any, name: str, overloads: list[list[Parameter]], does: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return does(self.__dict__.get("does", self), **_bind(module, name, overloads, args, kwargs))

    return call


def _bind(module: Any, name: str, overloads: list[list[Parameter]], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name. Raises TypeError, as nanobind does, where no overload takes them."""
    for parameters in overloads:
        values = _fit(module, parameters, args, kwargs)
        if values is not None:
            return values
    raise TypeError(f"{name}(): incompatible function arguments: {args} {kwargs}")


def _fit(module: Any, parameters: list[Parameter], args: Any, kwargs: Any) -> dict[str, Any] | None:
    places = [name for name, kind, _, _ in parameters if kind == "positional_or_keyword"]
    values = dict(zip(places, args, strict=False))
    if len(args) > len(places) or set(values) & set(kwargs):
        return None
    values |= kwargs
    types = {name: cpp_type for name, _, _, cpp_type in parameters}
    missing = {name for name, _, need, _ in parameters if need == "required"} - set(values)
    if missing or set(values) - set(types):
        return None
    return values if all(_accepts(module, types[name], value) for name, value in values.items()) else None


def _accepts(module: Any, cpp_type: str, value: Any) -> bool:
    if inner := re.fullmatch(r"std::optional<(.*)>", cpp_type):
        return value is None or _accepts(module, inner[1], value)
    if inner := re.fullmatch(r"std::(?:vector|list)<(.*)>", cpp_type.replace("VecTokens", "std::vector<TokenIdType>")):
        return isinstance(value, list | tuple) and all(_accepts(module, inner[1], entry) for entry in value)
    if cpp_type in _WHOLE:
        least = 0 if _WHOLE[cpp_type] == 64 else -(2**31)
        return type(value) is int and least <= value < 2 ** _WHOLE[cpp_type]
    if cpp_type in ("float", "FloatType"):
        return type(value) in (int, float)
    if cpp_type == "bool":
        return type(value) is bool
    if cpp_type == "std::filesystem::path":
        return isinstance(value, str | Path)
    if cpp_type == "":  # the catalogue does not say: flags, numbers of requests, times
        return value is None or isinstance(value, bool | int | timedelta | getattr(module, "Request", int))
    known = getattr(module, cpp_type, None)  # one that the catalogue leaves out takes nothing
    return known is not None and isinstance(value, known)
