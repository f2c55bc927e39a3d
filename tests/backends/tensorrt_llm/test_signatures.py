"""The stand-in has TensorRT-LLM's signatures and attributes, no more; so what runs on it calls what there is."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.backends.tensorrt_llm.cases import CASES
from tests.backends.tensorrt_llm.conftest import Checkpoints
from tests.backends.tensorrt_llm.standin import catalogue
from tests.backends.tensorrt_llm.standin.binding import IMPLEMENTED, NotCovered
from tests.backends.tensorrt_llm.standin.engine import Engines, Runtime
from tests.backends.tensorrt_llm.standin.world import RankState, World

SOURCES = [Path("trtllm_pt/backends/tensorrt_llm") / name for name in ("network.py", "weights.py")]


def signatures() -> Iterator[tuple[str, str, Any]]:
    """Everything with numbers: its name, TensorRT-LLM's signature of it, and what callers get."""
    for module, symbols in IMPLEMENTED.items():
        for name, thing in symbols.items():
            if not inspect.isclass(thing):
                yield f"{module}.{name}", catalogue.entry(module, name), thing
                continue
            known = catalogue.methods(module, name)
            for key, value in vars(thing).items():
                function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if inspect.isfunction(function) and key in known:
                    yield f"{module}.{name}.{key}", known[key], function


SIGNATURES = {name: (text, function) for name, text, function in signatures()}
OPERATORS = [name for name in SIGNATURES if re.search(r"\.__(?!init__)\w+__$", name)]  # Python calls them, by position
CALLED = [name for name in SIGNATURES if name not in OPERATORS]


def parts(text: str) -> list[tuple[str, str, bool]]:
    """Names, kinds and whether there is a default, of a signature as api.json has it."""
    arguments = ast.parse(f"def f{text[text.index('(') :]}: ...").body[0].args
    optional = len(arguments.args) - len(arguments.defaults)
    found = [(a.arg, "POSITIONAL_OR_KEYWORD", i >= optional) for i, a in enumerate(arguments.args)]
    found += [(arguments.vararg.arg, "VAR_POSITIONAL", False)] if arguments.vararg else []
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found += [(a.arg, "KEYWORD_ONLY", default is not None) for a, default in pairs]
    return found + ([(arguments.kwarg.arg, "VAR_KEYWORD", False)] if arguments.kwarg else [])


@pytest.mark.parametrize("name", CALLED)
def test_signatures_are_tensorrt_llms(name: str) -> None:
    text, function = SIGNATURES[name]
    own = inspect.signature(function).parameters.values()
    assert [(p.name, p.kind.name, p.default is not p.empty) for p in own] == parts(text)
    required = [p.name for p in own if p.default is p.empty and not p.kind.name.startswith("VAR")]
    arguments = dict.fromkeys(required)
    for missing in required:
        with pytest.raises(TypeError, match=f"missing .*{missing!r}"):
            function(**{key: value for key, value in arguments.items() if key != missing})
    if not any(p.kind is p.VAR_KEYWORD for p in own):
        with pytest.raises(TypeError, match="unexpected keyword argument 'no_such_thing'"):
            function(**arguments, no_such_thing=1)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_tensorrt_llms(name: str) -> None:
    text, function = SIGNATURES[name]
    if "*" not in text:
        assert len(inspect.signature(function).parameters) == len(parts(text))


def test_what_has_no_numbers_takes_its_arguments_and_refuses(definition: ModuleType) -> None:
    functional = sys.modules["tensorrt_llm.functional"]
    with pytest.raises(NotCovered, match=r"functional\.layer_norm"):
        functional.layer_norm(None, 4, eps=1e-5)
    with pytest.raises(TypeError, match="epsilon"):
        functional.layer_norm(None, 4, epsilon=1e-5)
    with pytest.raises(NotCovered, match="num_groups=2"):
        functional.rms_norm(None, 4, num_groups=2)
    with pytest.raises(AttributeError):
        functional.rms_normalise  # noqa: B018


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_the_definition_imports_exists(definition: ModuleType, path: Path) -> None:
    """Python's own import would look like a machine without TensorRT-LLM."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tensorrt"):
            module = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= set(vars(module))


ATTRIBUTES = ("tp mha", "pt window", "pt moe", "pt qk norm mha", "pt W8A16 FP8 kv", "pt FP8 FP8 kv", "pt moe W8A16")
GIVEN_LATER = {"kv_cache_rcp_scaling_factor", "fc", "proj"}  # by quantize(), and by MixtureOfExperts.init_experts()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_tensorrt_llms(definition: ModuleType, checkpoints: Checkpoints, name: str) -> None:
    """What the definition can read of a layer, a config or the call's parameters, TensorRT-LLM's has too."""
    case = CASES[name]
    engines = Engines(definition.MODEL_MAP, checkpoints(case, case.ranks[-1]))
    model = engines.models[0]
    state = RankState(0, World(1), None)
    inputs = Runtime(engines.config, [4]).inputs(state, {0: [1, 2, 3]}, [0], {0})
    modules = [module for _, module in model.named_modules()]
    things = [*modules, *model.parameters(), model.config, model.config.mapping, model.config.quantization]
    for thing in [*things, inputs["kv_cache_params"], inputs["attention_params"], inputs["input_ids"]]:
        module, kind = type(thing).__module__, type(thing).__qualname__
        if kind in IMPLEMENTED.get(module, {}):
            own = {*vars(thing), *vars(thing).get("_parameters", ()), *vars(thing).get("_modules", ())}
            public = {key for key in own if not key.startswith("_") and not key.isdigit()} - GIVEN_LATER
            known = catalogue.attributes(module, kind) | set(catalogue.methods(module, kind))
            assert public <= known, f"{module}.{kind} has no {', '.join(sorted(public - known))}"
