"""Makes our model class known to TensorRT-LLM in every Python process that has this folder in PYTHONPATH.

NVIDIA's tools for engines (trtllm-serve, trtllm-bench, LLM) read an engine's config in their own process and in one
process per rank, and each of them must know the class. Python imports this file when it starts. The class is imported
with tensorrt_llm.models, which has the table of classes, so a process without TensorRT-LLM imports nothing.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class _WithOurClass(MetaPathFinder):
    """Imports the network definition when tensorrt_llm.models has been imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorrt_llm.models":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            importlib.import_module("trtllm_pt.backends.tensorrt_llm.network")

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _import_the_hidden_one() -> None:
    """Run the sitecustomize that Python would have imported without this folder."""
    here = Path(__file__).parent.resolve()
    spec = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if Path(entry).resolve() != here])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


sys.meta_path.insert(0, _WithOurClass())
_import_the_hidden_one()
