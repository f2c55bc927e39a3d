"""Binds what has numbers here to TensorRT-LLM's signatures.

    @implements("tensorrt_llm.functional")
    def matmul(input, mat2, transa, transb): ...

An implementation names the parameters that it understands, without defaults. The function that callers get has
TensorRT-LLM's whole signature: it binds the call as Python would, fills in TensorRT-LLM's defaults, and refuses a value
other than the default for any parameter that the implementation does not name.
"""

from __future__ import annotations

import functools
import inspect
from collections import ChainMap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests.backends.tensorrt_llm.standin import catalogue
from tests.backends.tensorrt_llm.standin.trt import tensorrt

IMPLEMENTED: dict[str, dict[str, Any]] = {}  # module -> name -> function or class
MODULES: dict[str, ModuleType] = {}  # the generated modules: where defaults are evaluated
NAMES: dict[str, Any] = {"partial": functools.partial, "trt": tensorrt, "np": np}  # what else they name


class NotCovered(NotImplementedError):
    """TensorRT-LLM has this; the stand-in has no numbers for it."""


def implements(module: str, name: str | None = None) -> Callable[[Any], Any]:
    """Declares a function or a class as TensorRT-LLM's of that module and name (its own, where none is given)."""

    def declare(thing: Any) -> Any:
        called = name or thing.__name__
        bound = _class(module, called, thing) if inspect.isclass(thing) else _function(module, called, thing)
        IMPLEMENTED.setdefault(module, {})[called] = bound
        return bound

    return declare


def refusing(module: str, name: str) -> Any:
    """A function or class without numbers: takes TensorRT-LLM's arguments, then refuses."""
    entry = catalogue.entry(module, name)
    if isinstance(entry, str):
        return bind(module, name, entry, None)
    methods = catalogue.methods(module, name)
    text = methods.get("__init__", "method (self)")
    return type(name, (), {"__init__": bind(module, f"{name}.__init__", text, None), "__module__": module})


def bind(module: str, name: str, text: str, implementation: Callable[..., Any] | None) -> Callable[..., Any]:
    """A function with the signature `text`."""
    signature = catalogue.signature(text)
    arguments_of = _binder(name.rpartition(".")[2], signature)
    keywords = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    understood = _understood(module, name, implementation, signature)

    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = arguments_of(*args, **kwargs)
        if implementation is None:
            raise NotCovered(f"{module}.{name}")
        extra = arguments.pop(keywords, {})
        values = {}
        for key, value in arguments.items():
            if key in understood:
                values[key] = default(module, signature, key) if value is _NOT_GIVEN else value
            elif value is not _NOT_GIVEN and not _same(value, default(module, signature, key)):
                raise NotCovered(f"{module}.{name} with {key}={value!r}")
        return implementation(**values, **extra)

    if implementation is not None:
        functools.update_wrapper(call, implementation)
    call.__name__ = name.rpartition(".")[2]
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


class _NotGiven:
    def __repr__(self) -> str:
        return "_NOT_GIVEN"


_NOT_GIVEN = _NotGiven()


def _binder(name: str, signature: inspect.Signature) -> Callable[..., dict[str, Any]]:
    """A function of that signature that gives its arguments: Python itself binds them, and names what is wrong."""
    parameters = signature.parameters.values()
    bare = [p if p.default is p.empty else p.replace(default=_NOT_GIVEN) for p in parameters]
    namespace: dict[str, Any] = {"_NOT_GIVEN": _NOT_GIVEN}
    exec(f"def {name}{signature.replace(parameters=bare)}: return locals()", namespace)
    return namespace[name]  # type: ignore[no-any-return]


def default(module: str, signature: inspect.Signature, key: str) -> Any:
    """The parameter's default, evaluated where TensorRT-LLM's source stands."""
    return evaluate(module, signature.parameters[key].default)


@functools.cache  # as in Python, a default is one object for all calls
def evaluate(module: str, expression: str) -> Any:
    """A name of that module comes first; what it imports, from wherever it is."""
    return eval(expression, dict(ChainMap(*(vars(MODULES[name]) for name in (module, *MODULES)), NAMES)))


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    return type(value) in (bool, int, float, str, list, tuple) and type(value) is type(other) and value == other


def _understood(
    module: str, name: str, implementation: Callable[..., Any] | None, signature: inspect.Signature
) -> list[str]:
    if implementation is None:
        return []
    named = inspect.signature(implementation).parameters.values()
    plain = [p.name for p in named if p.kind is not p.VAR_KEYWORD]
    for key in plain:
        assert key in signature.parameters, f"{module}.{name} has no parameter {key!r}"
    for p in named:
        assert p.default is p.empty, f"{module}.{name}: {p.name} has a default here; defaults are TensorRT-LLM's"
    return plain


def _function(module: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return bind(module, name, catalogue.entry(module, name), function)


def _class(module: str, name: str, cls: type) -> type:
    """The class with its methods bound. It may have no public method that TensorRT-LLM's has not."""
    known = catalogue.methods(module, name)
    for key, value in list(vars(cls).items()):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not (inspect.isfunction(function) or isinstance(function, property)):
            continue
        if key not in known:
            assert key.startswith("_"), f"{module}.{name} has no {key!r}"
        elif inspect.isfunction(function) and (key == "__init__" or not key.startswith("__")):
            bound: Any = bind(module, f"{name}.{key}", known[key].partition(" ")[2], function)
            setattr(cls, key, bound if function is value else type(value)(bound))
    cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
    return cls
