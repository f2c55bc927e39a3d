"""Build, run and measure Parallel Track Transformers and related models that synchronise their ranks less often.

import trtllm_pt

trtllm_pt.convert("pretrained/stdlib-pt", "build/demo", ranks=2)
trtllm_pt.build("build/demo", "engines/demo")
with trtllm_pt.LLM("engines/demo") as llm:
    [result] = llm.generate(["def main("], trtllm_pt.SamplingParams(max_tokens=32))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtllm_pt._version import __version__
    from trtllm_pt.backends.build import build
    from trtllm_pt.backends.export import export
    from trtllm_pt.backends.inspect import inspect
    from trtllm_pt.backends.manifest import BuildOptions
    from trtllm_pt.checkpoint.convert import convert
    from trtllm_pt.checkpoint.init import init
    from trtllm_pt.requests.messages import SamplingParams
    from trtllm_pt.runtime.llm import LLM, RunResult

__all__ = [
    "LLM",
    "BuildOptions",
    "RunResult",
    "SamplingParams",
    "__version__",
    "build",
    "convert",
    "export",
    "init",
    "inspect",
]

_HOMES = {
    "__version__": "_version",
    "convert": "checkpoint.convert",
    "init": "checkpoint.init",
    "BuildOptions": "backends",
    "build": "backends",
    "export": "backends.export",
    "inspect": "backends",
    "SamplingParams": "requests.messages",
    "LLM": "runtime.llm",
    "RunResult": "runtime.llm",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that reading a config or a schedule does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
