"""Checkpoints that tests share, and TensorRT-LLM's stand-in for a test file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.backends.tensorrt_llm.cases import Case, write_checkpoint
from tests.backends.tensorrt_llm.standin.install import installed

Checkpoints = Callable[[Case, int], Path]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A case's checkpoint for so many ranks, made once."""
    folders: dict[str, Path] = {}

    def checkpoint(case: Case, ranks: int) -> Path:
        if case.name not in folders:
            folders[case.name] = tmp_path_factory.mktemp("case")
        return write_checkpoint(case, ranks, folders[case.name])

    return checkpoint


@pytest.fixture(scope="module")
def definition() -> Iterator[ModuleType]:
    """The network definition over the stand-in."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the ranks' threads are enough
    with installed() as module:
        yield module
    torch.set_num_threads(threads)
