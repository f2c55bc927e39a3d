"""The side of the tests: hands cases to processes that hold TensorRT-LLM's sources, and gets plain data back."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.backends.tensorrt_llm.checkout import worker
from tests.backends.tensorrt_llm.checkout.worker import Built, Job

VARIABLE = "TRTLLM_CHECKOUT"
HOW = f"{VARIABLE} is not set: let it name a clone of github.com/NVIDIA/TensorRT-LLM, tag v1.2.1 to v1.3.0rc20"
PROCESSES = 2
# What TensorRT-LLM's graph builder imports beside torch and numpy; the extra `checkout`.
NEEDED = ("packaging", "psutil", "pydantic", "strenum", "tqdm", "yaml")


def checkout_path() -> Path:
    """The checkout, or the test is skipped. Fails where it is named but cannot be used."""
    if not os.environ.get(VARIABLE):
        pytest.skip(HOW)
    path = Path(os.environ[VARIABLE]).resolve()
    if not (path / "tensorrt_llm" / "builder.py").exists():
        pytest.fail(f"{VARIABLE} ({path}) has no tensorrt_llm/builder.py: not a TensorRT-LLM of the TensorRT backend")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.fail(f"TensorRT-LLM's sources import {', '.join(missing)}: pip install -e '.[checkout]'")
    return path


class Checkout:
    """The worker processes, and what they have made: each job once."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.folder = folder
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(PROCESSES, context, worker.start, (path,))
        self._results: dict[str, Future[Built]] = {}

    def checkpoint(self, job: Job) -> Path:
        return self.folder / str(job) / f"ranks{job.ranks}"

    def begin(self, jobs: Iterable[Job]) -> None:
        """So that the processes have work ahead."""
        for job in jobs:
            if str(job) not in self._results:
                folder = self.folder / str(job)
                self._results[str(job)] = self.pool.submit(worker.call, worker.build, job, folder)

    def built(self, job: Job) -> Built:
        self.begin([job])
        return self._results[str(job)].result()

    def call(self, function: Any, *arguments: Any) -> Any:
        return self.pool.submit(worker.call, function, *arguments).result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
