"""Building engines, inspecting them and running a rank of them. A folder per backend; nothing outside it names it."""

from trtllm_pt.backends.backend import Backend, BuildReport
from trtllm_pt.backends.build import build
from trtllm_pt.backends.inspect import inspect
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.backends.registry import backends, choose, read_engine

__all__ = [
    "Backend",
    "BuildOptions",
    "BuildReport",
    "EngineManifest",
    "backends",
    "build",
    "choose",
    "inspect",
    "read_engine",
]
