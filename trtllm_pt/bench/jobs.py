"""Start the ranks that a measurement needs, and open the engines in them while it lasts."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from trtllm_pt.backends.backend import Backend, SharedRanks
from trtllm_pt.backends.registry import backends
from trtllm_pt.batching.follow import Follower
from trtllm_pt.bench.facts import Facts
from trtllm_pt.errors import MPI_OF_EMBEDDED, UsageError
from trtllm_pt.job.launchers import launched_rank, launched_ranks
from trtllm_pt.requests.messages import Runtime

if TYPE_CHECKING:
    from mpi4py import MPI

_PAGE = 32  # tokens; a multiple of every engine's page of the KV cache
_POLL_SECONDS = 0.01


def join_ranks(ranks: int | None) -> MPI.Intracomm:
    """Return the communicator of all ranks that mpirun started.

    Without mpirun, this process is replaced by an mpirun with `ranks` ranks that runs the same command again.
    Raises UsageError if mpirun started another number of ranks, or if the number is not known.
    """
    from trtllm_pt.job.mpirun import start_again
    from trtllm_pt.job.world import World, import_mpi

    if launched_ranks() is None:
        if ranks is None:
            raise UsageError("--ranks is missing: without mpirun, it says how many ranks to start")
        start_again(ranks, MPI_OF_EMBEDDED)
    world = World.join(ranks, MPI_OF_EMBEDDED)
    return world.comm or import_mpi(MPI_OF_EMBEDDED).COMM_WORLD


def wait_for_rank_0(comm: MPI.Intracomm, value: Any = None) -> Any:
    """Send rank 0's `value` to all ranks, and return it on each of them.

    The other ranks sleep while they wait, because rank 0 may need minutes and they would take its processor time.
    """
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.send(value, rank)
        return value
    while not comm.Iprobe(0):
        time.sleep(_POLL_SECONDS)
    return comm.recv(source=0)


def leave_interrupts_to_rank_0() -> None:
    """Ignore Ctrl-C on all ranks but rank 0, which saves what was measured and then stops the other ranks."""
    if launched_rank():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def running(facts: Facts, threads: int | None = None) -> Iterator[Runtime]:
    """Run an engine. The body runs on rank 0, or in this process if there is no mpirun.

    The other ranks of an mpirun serve the engine until it is closed, and then exit.
    """
    from trtllm_pt.runtime.llm import start_runtime

    leave_interrupts_to_rank_0()
    runtime = start_runtime(facts.folder, facts.manifest, threads, None)
    try:
        yield runtime
    finally:
        runtime.close()


@contextmanager
def running_together(engines: Sequence[Facts], threads: int | None, batch_size: int) -> Iterator[list[Runtime]]:
    """Run several engines at once, of which one works at a time. Each KV cache holds `batch_size` sequences.

    If the backend supports it, the engines share the ranks that mpirun started, and the ranks other than 0 serve them
    and then exit. Otherwise each engine gets a job of its own, and UsageError is raised if mpirun started this process.
    """
    if shared_ranks(engines) is not None:
        yield from _in_these_ranks(engines, threads, batch_size)
    elif launched_ranks() is not None:
        titles = ", ".join(dict.fromkeys(each.manifest.backend.title for each in engines))
        raise UsageError(f"engines of {titles} run as separate jobs in a comparison: start it without mpirun")
    else:
        from trtllm_pt.runtime.llm import start_runtime

        with ExitStack() as stack:
            runtimes = []
            for each in engines:
                runtimes.append(start_runtime(each.folder, each.manifest, threads, _kv_tokens(each, batch_size)))
                stack.callback(runtimes[-1].close)
            yield runtimes


def _in_these_ranks(engines: Sequence[Facts], threads: int | None, batch_size: int) -> Iterator[list[Runtime]]:
    with sharing_ranks(engines, threads, batch_size) as runtimes:
        if runtimes is None:
            sys.exit(0)
        yield runtimes


@contextmanager
def sharing_ranks(
    engines: Sequence[Facts], threads: int | None, batch_size: int, beside: Sequence[Follower] = ()
) -> Iterator[list[Runtime] | None]:
    """Run several engines in the ranks that mpirun started.

    Rank 0 gets the runtimes. The other ranks serve all engines first, and then get None.
    `beside` lists what else these ranks follow until rank 0 stops it.
    """
    leave_interrupts_to_rank_0()
    room = max(_kv_tokens(each, batch_size) for each in engines)
    shared = shared_ranks(engines)
    assert shared is not None
    runtimes = shared.open([each.folder for each in engines], threads, room, beside)
    try:
        yield runtimes
    finally:
        for runtime in runtimes or ():
            runtime.close()


def sharing_backend() -> Backend:
    """Return the first backend whose engines can share ranks. Comparisons build their engines for it."""
    return next(backend for backend in backends().values() if backend.shared_ranks is not None)


def shared_ranks(engines: Sequence[Facts]) -> SharedRanks | None:
    """Return the means of the engines' backend to share ranks, or None if these engines cannot."""
    (backend, *others) = {each.manifest.backend for each in engines}
    return None if others else backend.shared_ranks


def _kv_tokens(facts: Facts, batch_size: int) -> int:
    """Return the tokens of a KV cache for `batch_size` sequences of the longest length, in whole pages."""
    return batch_size * -(-facts.manifest.max_seq_len // _PAGE) * _PAGE
