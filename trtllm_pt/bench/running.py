"""Engines that run while a measurement lasts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from trtllm_pt.bench.facts import Facts
from trtllm_pt.messages import Runtime

_RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")


def follows() -> bool:
    """Whether mpirun started this process as another rank than 0."""
    return any(os.environ.get(name, "0") != "0" for name in _RANK)


def leave_interrupts_to_rank_0() -> None:
    """It saves what was measured, and then ends all ranks."""
    if follows():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def running(facts: Facts, threads: int | None = None) -> Iterator[Runtime]:
    """On rank 0, or outside mpirun; the other ranks serve the engine and then leave the process."""
    from trtllm_pt.runtime.llm import start_runtime

    leave_interrupts_to_rank_0()
    runtime = start_runtime(facts.folder, facts.manifest, threads, None)
    try:
        yield runtime
    finally:
        runtime.close()
