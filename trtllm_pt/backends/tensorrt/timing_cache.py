"""TensorRT's timing cache, which spares a later build on the same GPU the measurement of kernels.

TensorRT-RTX has none: it measures nothing when it compiles, and chooses kernels on the user's GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from trtllm_pt.files.atomic import new_file
from trtllm_pt.files.cache import cache_dir


@contextmanager
def timing_cache(trt: ModuleType, config: Any) -> Iterator[None]:
    """Let the build in the block use the timing cache of this version of TensorRT, and keep what it adds."""
    path = cache_dir() / "tensorrt" / f"{trt.__version__}.timing"
    known = path.read_bytes() if path.exists() else b""
    config.set_timing_cache(config.create_timing_cache(known), False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:  # ranks that are built at the same time may overwrite each other's additions
        partial.write_bytes(config.get_timing_cache().serialize())
