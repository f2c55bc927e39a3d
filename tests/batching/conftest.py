"""The log-probs of sampled tokens come from the embedded engine's op library."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _ops(library: Path) -> None:
    from trtllm_pt.backends.embedded.kernels.library import load

    load(library)
