"""The folder that keeps what was compiled, so that it is compiled once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$TRTLLM_PT_CACHE, else $XDG_CACHE_HOME/trtllm_pt, else ~/.cache/trtllm_pt. The folder need not exist yet."""
    own = os.environ.get("TRTLLM_PT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm_pt"
