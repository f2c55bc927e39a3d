"""Who may import whom. A folder on the right of `<-` is built on those to its left, never the other way round."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trtllm_pt"

LAYERS = [
    line.split()
    for line in """
        errors logs
        model plotting
        files text job requests
        network batching
        checkpoint
        backends vllm_plugin
        runtime spd
        conversion
        serving bench evaluation
        cli
    """.strip().splitlines()
]
ONLY = {  # parts that may import less than all below them
    "planner": {"errors", "plotting", "model"},
}
NO_TORCH = {"errors", "logs", "plotting", "model", "requests", "planner", "cli"}
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


def imports(path: Path, top_only: bool = False, typing: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; `top_only`: when it is imported itself; `typing`: for type checkers too."""
    tree = ast.parse(path.read_text())
    for node in _at_import(tree) if top_only else ast.walk(tree) if typing else _without_typing(tree):
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


def _without_typing(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _without_typing(child)


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


def module_name(path: Path) -> str:
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


def test_no_cycles() -> None:
    """No module imports itself by way of others, not even from inside a function."""
    paths = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    graph = {name: set(_modules_imported(path, paths)) - {name} for name, path in paths.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"an import cycle: {' -> '.join(error.args[1])}") from None


def _modules_imported(path: Path, known: Collection[str]) -> Iterator[str]:
    """Modules, not packages: a package's own imports are what `from package import name` goes through."""
    for name in imports(path, typing=False):
        yield name if name in known else name.rpartition(".")[0]


BACKENDS = [path.parent.name for path in sorted((PACKAGE / "backends").glob("*/backend.py"))]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_names_a_backend(path: Path) -> None:
    """Outside a backend's folder no code imports from it, and no string is its name."""
    place = path.relative_to(PACKAGE)
    own = {place.parts[1]} if place.parts[:1] == ("backends",) and len(place.parts) > 2 else set()
    strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    for name in set(BACKENDS) - own:
        assert not [found for found in imports(path) if f"{found}.".startswith(f"trtllm_pt.backends.{name}.")]
        assert name not in strings or (name, str(place)) in NVIDIAS


NVIDIAS = {  # other things of NVIDIA that have the name of a backend
    ("tensorrt_llm", "serving/triton/tensors.py"),  # a Triton model, whatever runs in it
    ("tensorrt", "backends/tensorrt_llm/checks.py"),  # a Python package
}
