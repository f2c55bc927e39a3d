"""The cache folder of compiled ops and graphs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return $TRTLLM_PT_CACHE if set, else $XDG_CACHE_HOME/trtllm_pt, else ~/.cache/trtllm_pt.

    The folder may not exist yet.
    """
    own = os.environ.get("TRTLLM_PT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm_pt"
