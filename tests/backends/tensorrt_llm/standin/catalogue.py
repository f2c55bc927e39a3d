"""TensorRT-LLM's signatures, read from api.json."""

from __future__ import annotations

import ast
import json
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

API: dict[str, Any] = json.loads(Path(__file__).with_name("api.json").read_text())
MODULES: dict[str, dict[str, Any]] = API["modules"]


def entry(module: str, name: str) -> Any:
    """A symbol's entry; a nested class is named Outer.Inner, a method Class.method. KeyError: there is none."""
    found: Any = MODULES[module]
    for part in name.split("."):
        found = found["methods"].get(part) or found["nested"][part] if "methods" in found else found[part]
    return found


@cache
def signature(text: str) -> Signature:
    """Of "(a, b=1)", or of a method's "property (self)". Defaults are expressions, still to be evaluated."""
    arguments = ast.parse(f"def f{text[text.index('(') :]}: ...").body[0].args  # type: ignore[attr-defined]
    parameters = []
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(positional, defaults, strict=True):
        parameters.append(_parameter(argument.arg, Parameter.POSITIONAL_OR_KEYWORD, default))
    if arguments.vararg is not None:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(_parameter(argument.arg, Parameter.KEYWORD_ONLY, default))
    if arguments.kwarg is not None:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(parameters)


def _parameter(name: str, kind: Any, default: ast.expr | None) -> Parameter:
    return Parameter(name, kind, default=Parameter.empty if default is None else ast.unparse(default))


def methods(module: str, name: str) -> dict[str, str]:
    """All methods of a class, those of its bases included; a dataclass's `__init__` is made of its fields."""
    found: dict[str, str] = {}
    for owner in reversed(_bases(module, name)):
        if owner["fields"] and "__init__" not in owner["methods"]:
            parts = [key if value is None else f"{key}={value}" for key, value in owner["fields"].items()]
            found["__init__"] = f"method (self, {', '.join(parts)})"
        found.update(owner["methods"])
    return found


def attributes(module: str, name: str) -> set[str]:
    """What an instance has beside methods."""
    found: set[str] = set()
    for owner in _bases(module, name):
        found |= {*owner["attributes"], *owner["fields"]}
    return found


@cache
def _bases(module: str, name: str) -> list[Any]:
    """A class's entry, then those of its bases as far as they are known."""
    found = entry(module, name)
    if "value" in found:  # an alias
        return _bases(module, found["value"])
    known = {key: where for where, symbols in MODULES.items() for key in symbols}
    own = [found] if "methods" in found and "bases" in found else []
    for base in found.get("bases", ()):
        base = base.removeprefix("metaclass=")
        where = module if base in MODULES[module] else known.get(base)
        if where is not None and base != name:
            own += _bases(where, base)
    return own
