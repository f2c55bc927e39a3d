"""Puts the stand-in where `import tensorrt_llm` finds it, and takes it away again."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import torch

# Importing these declares what they have numbers for.
from tests.backends.tensorrt_llm.standin import attention, functional, layers, models, moe, net, quantization
from tests.backends.tensorrt_llm.standin import module as modules
from tests.backends.tensorrt_llm.standin.binding import IMPLEMENTED, MODULES, NAMES, evaluate, refusing
from tests.backends.tensorrt_llm.standin.catalogue import API
from tests.backends.tensorrt_llm.standin.enums import make
from tests.backends.tensorrt_llm.standin.trt import tensorrt
from tests.backends.tensorrt_llm.standin.weight_only import OPS
from trtllm_pt.backends import tensorrt_llm as backend

DEFINITION = "trtllm_pt.backends.tensorrt_llm.network"
_OF_DEFINITION = (DEFINITION, "trtllm_pt.backends.tensorrt_llm.weights")
WITH_NUMBERS = (attention, functional, layers, models, modules, moe, net, quantization)


@contextmanager
def installed() -> Iterator[ModuleType]:
    """The network definition, imported anew over the stand-in. Afterwards the machine is again one without it."""
    op_before = vars(torch.ops).get("trtllm")
    ours = _forget_definition()
    sys.modules.update(generated())
    torch.ops.trtllm = OPS
    try:
        yield importlib.import_module(DEFINITION)
    finally:
        models.MODEL_MAP.clear()
        del torch.ops.trtllm
        if op_before is not None:
            torch.ops.trtllm = op_before
        for name in generated():
            del sys.modules[name]
        _forget_definition()
        for name, module in ours.items():
            sys.modules[name] = module
            setattr(backend, name.rpartition(".")[2], module)


def _forget_definition() -> dict[str, ModuleType]:
    """Its modules, gone from where imports look."""
    found = {name: module for name, module in sys.modules.items() if name in _OF_DEFINITION}
    for name in found:
        del sys.modules[name]
        delattr(backend, name.rpartition(".")[2])
    return found


@functools.cache
def generated() -> dict[str, ModuleType]:
    """Every module of the catalogue, with all its symbols."""
    for name in API["modules"]:
        MODULES[name] = ModuleType(name)
    for name in API["modules"]:
        _fill(MODULES[name])
    for name, symbols in API["modules"].items():
        for symbol, entry in symbols.items():
            if "value" in entry and not isinstance(entry, str):
                _assign_value(MODULES[name], symbol, entry["value"])
    found = dict(MODULES)
    for package, exports in API["exports"].items():
        found[package] = found.get(package) or ModuleType(package)
        for name, origin in exports.items():
            module, _, symbol = origin.rpartition(".")
            if hasattr(MODULES[module], symbol):
                setattr(found[package], name, getattr(MODULES[module], symbol))
    found["tensorrt_llm.models"].MODEL_MAP = models.MODEL_MAP  # type: ignore[attr-defined]
    found["tensorrt"] = tensorrt
    for name, module in found.items():
        if any(other.startswith(f"{name}.") for other in found):
            module.__path__ = []  # a package
    return found


def _fill(module: ModuleType) -> None:
    name = module.__name__
    for symbol, entry in API["modules"][name].items():
        if symbol in IMPLEMENTED.get(name, {}):
            made: Any = IMPLEMENTED[name][symbol]
        elif isinstance(entry, str) or ("methods" in entry and "bases" in entry):
            made = refusing(name, symbol)
        elif "enum" in entry:
            made = make(name, symbol, entry)
        else:
            continue
        setattr(module, symbol, made)
        for inner, nested in (entry.get("nested", {}) if isinstance(entry, dict) else {}).items():
            if "enum" in nested:
                NAMES[inner] = make(name, inner, nested)
                setattr(made, inner, NAMES[inner])


def _assign_value(module: ModuleType, symbol: str, expression: str) -> None:
    """An alias, a partial application, a constant. What cannot be evaluated here is not there."""
    with suppress(Exception):
        setattr(module, symbol, evaluate(module.__name__, expression))
