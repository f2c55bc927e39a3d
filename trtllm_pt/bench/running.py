"""Engines that run while a measurement lasts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from trtllm_pt.backends.backend import Backend, Follower, SharedRanks
from trtllm_pt.backends.registry import backends
from trtllm_pt.bench.facts import Facts
from trtllm_pt.errors import UsageError
from trtllm_pt.job.launchers import launched_rank, launched_ranks
from trtllm_pt.requests.messages import Runtime

_PAGE = 32  # a multiple of both engines' KV pages


def leave_interrupts_to_rank_0() -> None:
    """It saves what was measured, and then ends all ranks."""
    if launched_rank():
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


@contextmanager
def running_together(engines: Sequence[Facts], threads: int | None, batch_size: int) -> Iterator[list[Runtime]]:
    """Several engines at once, of which one works at a time; KV caches with room for `batch_size` sequences.

    Where the backend can, they share the ranks that mpirun started; the ranks other than 0 serve them and then exit.
    Otherwise each engine is started in ranks of its own. Raises UsageError where mpirun has started some.
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
    """Engines in the ranks that mpirun started. None on the ranks other than 0, once they have served them all.

    beside: what else these ranks follow, until rank 0 stops it.
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
    """The first backend whose engines can run in the same ranks: comparisons build theirs for it."""
    return next(backend for backend in backends().values() if backend.shared_ranks is not None)


def shared_ranks(engines: Sequence[Facts]) -> SharedRanks | None:
    """How these engines run in the same ranks; None: they cannot."""
    (backend, *others) = {each.manifest.backend for each in engines}
    return None if others else backend.shared_ranks


def _kv_tokens(facts: Facts, batch_size: int) -> int:
    """In whole pages."""
    return batch_size * -(-facts.manifest.max_seq_len // _PAGE) * _PAGE
