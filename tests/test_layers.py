"""Who may import whom. A folder on the right of `<-` is built on those to its left, never the other way round."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trtllm_pt"

LAYERS = [
    line.split()
    for line in """
        errors logs
        model
        files text job requests
        network
        checkpoint
        backends
        runtime
        serving bench
        cli
    """.strip().splitlines()
]
ONLY = {  # parts that may import less than all below them
    "planner": {"errors", "model"},
}
NO_TORCH = {"errors", "logs", "model", "requests", "planner", "cli"}
FREE = {"__init__", "__main__", "_version"}  # _version: no imports from the package, so every part may use it


def allowed(part: str) -> set[str]:
    """What `part` may import of the package, itself included."""
    if part in ONLY:
        return ONLY[part] | {part}
    (level,) = (number for number, layer in enumerate(LAYERS) if part in layer)
    below = {name for layer in LAYERS[:level] for name in layer}
    return below | {part} | ({"planner"} if part in ("bench", "cli") else set())


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in FREE:
            yield part, path


MODULES = list(modules())


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; `top_only`: when it is imported itself."""
    tree = ast.parse(path.read_text())
    for node in _at_import(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """All statements but those inside functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


@pytest.mark.parametrize(("part", "path"), MODULES, ids=lambda value: str(value).removeprefix(f"{PACKAGE}/"))
def test_imports_go_down(part: str, path: Path) -> None:
    own = {name.split(".")[1] for name in imports(path) if name.startswith("trtllm_pt.")} - {"_version"}
    assert own <= allowed(part), f"{part} must not import {', '.join(sorted(own - allowed(part)))}"


@pytest.mark.parametrize(("part", "path"), MODULES, ids=lambda value: str(value).removeprefix(f"{PACKAGE}/"))
def test_light_parts_do_without_torch(part: str, path: Path) -> None:
    if part in NO_TORCH:
        heavy = {name.split(".")[0] for name in imports(path, top_only=True)} & {"torch", "mpi4py", "tensorrt_llm"}
        assert not heavy


def test_the_list_is_whole() -> None:
    known = {name for layer in LAYERS for name in layer} | set(ONLY)
    assert {part for part, _ in MODULES} <= known
