"""What tests of serving share: whether the server is here, and engines to serve."""

from __future__ import annotations

import importlib.util

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("pytriton") is None or importlib.util.find_spec("tritonclient") is None,
    reason="no Triton here: pip install -e '.[embedded,dev,serve]'",
)
