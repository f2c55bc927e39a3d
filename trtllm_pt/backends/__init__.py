"""Build, inspect and run engines. Each backend has a folder, and no code outside that folder names the backend."""

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
