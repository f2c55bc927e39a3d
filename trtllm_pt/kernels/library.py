"""Load the ops library into this process, as the namespace `torch.ops.trtllm_pt`."""

from __future__ import annotations

from pathlib import Path

import torch

from trtllm_pt.errors import RunError, UsageError

_loaded: Path | None = None


def load(path: Path) -> None:
    """Load the library once; call it before an engine package is loaded, whose graph names its ops.

    Raises UsageError where there is no such file, or another library was loaded before; RunError where it does not fit.
    """
    global _loaded
    path = path.resolve()
    if _loaded is not None:
        if _loaded != path and _loaded.read_bytes() != path.read_bytes():
            raise UsageError(f"{path} cannot be loaded: this process has already loaded other ops from {_loaded}")
        return
    if not path.is_file():
        raise UsageError(f"{path} does not exist; build the engine again")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise RunError(f"{path} does not load beside torch {torch.__version__}: {error}") from error
    _loaded = path
