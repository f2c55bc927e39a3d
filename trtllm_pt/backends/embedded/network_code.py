"""The Python code that decides the compiled graph, as one digest: part of the key under which graphs are cached."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_ROOT = "trtllm_pt"
# What is traced, the shapes of its ops, and the axes, example and flags that it is compiled with.
_DECIDES = tuple(f"trtllm_pt.backends.embedded.{name}" for name in ("network", "kernels.fakes", "graph"))


@functools.cache
def traced_code() -> str:
    """A digest of the modules that decide the graph. Comments, docstrings and layout are left out."""
    found = deciding_modules()
    text = "\0".join(f"{name}\0{found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()


def deciding_modules() -> dict[str, str]:
    """The code, by module, of what decides the graph and of all that it imports of this package, however deep."""
    found: dict[str, str] = {}
    queue = list(_DECIDES)
    while queue:
        name = queue.pop()
        if name not in found:
            tree = ast.parse(_path(name).read_text())
            queue += imports(tree)
            found[name] = code_of(tree)
    return found


def code_of(tree: ast.Module) -> str:
    """A module without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules of this package that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _ROOT:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if _is_module(submodule) else node.module


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _path(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, name
    return Path(spec.origin)
