"""Run several embedded engines in the same ranks, and the engine's all-reduce alone, for comparisons."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_pt.backends.backend import Channel
from trtllm_pt.batching.follow import Follower
from trtllm_pt.requests.messages import Runtime

if TYPE_CHECKING:
    from mpi4py import MPI


class EmbeddedSharedRanks:
    """Implements backend.SharedRanks."""

    def load(self, comm: MPI.Intracomm, folder: Path | None = None) -> None:
        """Load the op library. If the cache does not have it, rank 0 compiles it before the other ranks look for it."""
        from trtllm_pt.backends.embedded.kernels.build import LIBRARY, build_library
        from trtllm_pt.backends.embedded.kernels.library import load

        if folder is not None:
            load(folder / LIBRARY)
            return
        with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as scratch:
            for turn in (comm.rank == 0, comm.rank != 0):
                if turn:
                    load(build_library(Path(scratch)))
                comm.Barrier()

    def open(
        self, folders: Sequence[Path], threads: int | None, kv_tokens: int, beside: Sequence[Follower] = ()
    ) -> list[Runtime] | None:
        from trtllm_pt.backends.embedded.runtime import EmbeddedRuntime
        from trtllm_pt.backends.embedded.session import follow_all, open_sessions

        sessions = open_sessions(folders, threads=threads, kv_tokens=kv_tokens)
        if sessions[0].world.rank:
            follow_all([*sessions, *beside])
            return None
        return [EmbeddedRuntime(session) for session in sessions]

    def channel(self, comm: MPI.Intracomm, work: Callable[[], object]) -> Channel:
        return _Orders(comm, work)

    def all_reduce(self, comm: MPI.Intracomm, numbers: int) -> tuple[Callable[[], object], Callable[[], float]]:
        """Return functions for the engine's all-reduce: a fixed tree over the ranks, in shared memory or messages."""
        import torch

        torch.ops.trtllm_pt.set_communicator(comm.py2f())
        ones = torch.ones(1, 1, numbers)
        last = [ones]
        ranks = comm.size
        op = torch.ops.trtllm_pt.all_reduce.default  # looked up only once, as in a compiled graph

        def call() -> None:
            last.clear()  # frees the memory for the next result, as in a compiled graph
            last.append(op(ones, ranks, 1.0))

        return call, lambda: float(last[0].flatten()[0])


class _Orders:
    """Implements backend.Channel: rank 0 asks for work with a message on a communicator of its own."""

    def __init__(self, comm: MPI.Intracomm, work: Callable[[], object]) -> None:
        from trtllm_pt.backends.embedded.all_reduce_counts import Reduces
        from trtllm_pt.batching.rank_messages import RankMessages

        self._world, self._work = RankMessages(comm.Dup()), work
        self._message = memoryview(array("q", [1]))
        self._reduces = Reduces()

    @property
    def waiting(self) -> bool:
        return self._world.has_message

    def order(self) -> None:
        self._reduces.begin()  # the all-reduces from here on must not count for an engine
        self._world.send_plan(self._message)

    def run_next(self) -> bool:
        going_on = self._world.receive_plan(self._message)
        if going_on:
            self._reduces.begin()
            self._work()
        return going_on

    def stop(self) -> None:
        self._world.send_plan(None)
