"""The names of vLLM that the plugin imports, and their parameters, as read from vLLM's sources without importing them.

    python -m tests.vllm_plugin.api FOLDER …

prints them as JSON for each release, where FOLDER holds the unpacked wheel of one release and is named after it;
`api.json` is that for the releases that the plugin supports.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

PLUGIN = Path(__file__).parents[2] / "trtllm_pt" / "vllm_plugin"
Signatures = dict[str, list[str] | None]  # parameters by dotted name; None for what is not a function or a class
# Fields of vLLM's configs that the plugin reads, by the file and the class that has them.
FIELDS = {
    "config/parallel.py:ParallelConfig": ["tensor_parallel_size", "data_parallel_size"],
    "config/load.py:LoadConfig": ["load_format"],
    "config/model.py:ModelConfig": ["hf_config", "max_model_len", "quantization", "skip_tokenizer_init", "model"],
    "config/vllm.py:VllmConfig": [
        "cache_config",
        "device_config",
        "lora_config",
        "model_config",
        "quant_config",
        "speculative_config",
    ],
    "config/speculative.py:SpeculativeConfig": ["method"],
}


def imported(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """What a file imports from vLLM: the module, the name there, and the name here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from ((str(node.module), alias.name, alias.asname or alias.name) for alias in node.names)


def all_imported() -> set[str]:
    """The dotted names that the plugin imports from vLLM."""
    trees = [ast.parse(path.read_text()) for path in sorted(PLUGIN.glob("*.py"))]
    return {f"{module}.{name}" for tree in trees for module, name, _ in imported(tree)}


def _file(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.exists()), None)


def definition(root: Path, module: str, name: str) -> ast.AST | None:
    """Where a name is defined, through imports of other modules of vLLM. A module is its own definition."""
    if _file(root, f"{module}.{name}") is not None:
        return ast.Module([], [])
    path = _file(root, module)
    if path is None:
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: ast.AST | None = None
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            found = node  # of overloads, the last
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                found = found or node
        elif isinstance(node, ast.ImportFrom) and {alias.asname or alias.name for alias in node.names} & {name, "*"}:
            source = ".".join([*package.split(".")[: 1 - node.level or None], node.module or ""]).strip(".")
            found = found or definition(root, source if node.level else str(node.module), name)
    return found


def parameters(node: ast.AST) -> list[str] | None:
    """The parameters of a function, or of the constructor of a class that has its own."""
    if isinstance(node, ast.ClassDef):
        own = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return parameters(own[0]) if own else None
    if not isinstance(node, ast.FunctionDef):
        return None
    given = node.args
    return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def signatures(root: Path) -> Signatures:
    """Everything that the plugin uses, of the release whose folder this is. A name that is gone is left out."""
    found: Signatures = {}
    for dotted in sorted(all_imported()):
        module, _, name = dotted.rpartition(".")
        if (node := definition(root, module, name)) is not None:
            found[dotted] = parameters(node)
    for place in FIELDS:
        file, _, owner = place.partition(":")
        tree = ast.parse((root / "vllm" / file).read_text())
        (node,) = (item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == owner)
        have = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]  # type: ignore[union-attr]
        found[owner] = sorted(set(have))
    return found


if __name__ == "__main__":
    print(json.dumps({Path(folder).name: signatures(Path(folder)) for folder in sys.argv[1:]}, indent=1))
