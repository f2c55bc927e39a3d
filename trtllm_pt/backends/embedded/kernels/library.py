"""Load the op library into this process as the namespace `torch.ops.trtllm_pt`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from trtllm_pt.backends.embedded import constants
from trtllm_pt.errors import RunError, UsageError

_loaded: str | None = None  # digest of the loaded file, because the file may be moved or removed later


def load(path: Path) -> None:
    """Load the op library, unless it is already loaded. A compiled graph can only be loaded after its ops.

    Raises UsageError if the file does not exist or another library was loaded before, and RunError if it does not fit
    the installed torch.
    """
    global _loaded
    if not path.is_file():
        raise UsageError(f"{path} does not exist; build the engine again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _loaded is not None:
        if _loaded != digest:
            raise UsageError(
                f"{path} cannot be loaded: this process has already loaded another op library; start another process"
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
