"""Checkpoints that the tests of native TensorRT engines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.backends.tensorrt_llm.conftest import checkpoints

__all__ = ["checkpoints"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products take longer on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
