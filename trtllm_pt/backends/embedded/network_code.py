"""A digest of the Python code that determines the compiled graph. It is part of the key of the cache of graphs."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_ROOT = "trtllm_pt"
# The traced network, the shapes of its ops, and the axes, example inputs and flags with which it is compiled.
_DECIDES = tuple(f"trtllm_pt.backends.embedded.{name}" for name in ("network", "kernels.fakes", "graph"))


@functools.cache
def traced_code() -> str:
    """Return a digest of the modules that determine the graph, without comments, docstrings and layout."""
    found = deciding_modules()
    text = "\0".join(f"{name}\0{found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()


def deciding_modules() -> dict[str, str]:
    """Return the code, by module, that determines the graph: _DECIDES and all modules of this package they import,
    directly or indirectly."""
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
    """Return the code of a module without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the modules of this package that a module imports, also inside functions."""
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
