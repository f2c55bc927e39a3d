"""Building engines, and looking into them. `build` and `inspect` choose the engine; nothing else asks which it is."""

from trtllm_pt.backends.build import build, choose
from trtllm_pt.backends.inspect import inspect
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest

__all__ = ["BuildOptions", "EngineManifest", "build", "choose", "inspect"]
