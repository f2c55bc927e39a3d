"""Load the ops library into this process, as the namespace `torch.ops.trtllm_pt`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from trtllm_pt.backends.embedded import constants
from trtllm_pt.errors import RunError, UsageError

_loaded: str | None = None  # digest of the library's file, which may have been moved or removed since


def load(path: Path) -> None:
    """Load the library once; call it before an engine package is loaded, whose graph names its ops.

    Raises UsageError where there is no such file, or another library was loaded before; RunError where it does not fit.
    """
    global _loaded
    if not path.is_file():
        raise UsageError(f"{path} does not exist; build the engine again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _loaded is not None:
        if _loaded != digest:
            raise UsageError(
                f"{path} cannot be loaded: this process has already loaded other ops; start another process"
            )
        return
    try:
        torch.ops.load_library(str(path.resolve()))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise RunError(f"{path} does not load beside torch {torch.__version__}: {error}") from error
    check_constants()
    _loaded = digest


def check_constants() -> None:
    """Assert that the loaded library was compiled with the sizes in constants.py."""
    compiled: dict[str, int] = torch.ops.trtllm_pt.constants()
    ours = {name: value for name, value in vars(constants).items() if name.isupper()}
    assert compiled == ours, f"the op library was compiled with {compiled}, constants.py has {ours}"
