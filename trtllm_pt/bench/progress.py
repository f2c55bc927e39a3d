"""Progress bars for whoever waits longer than two seconds."""

from __future__ import annotations

import sys
from typing import Any

from trtllm_pt.job.launchers import launched_ranks

_PATIENCE = 2.0


def bar(total: int, what: str, unit: str) -> Any:
    """A tqdm bar on stderr: on a terminal, or behind mpirun, which hands the lines on."""
    from tqdm import tqdm

    shown = sys.stderr.isatty() or launched_ranks() is not None
    return tqdm(total=total, desc=what, unit=unit, delay=_PATIENCE, mininterval=0.5, disable=not shown, leave=False)
