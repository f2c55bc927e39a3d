"""Finds a rank that is alive but does not work, by its CPU time.

mpirun detects a rank that dies, and the other ranks detect a rank that is stopped. A rank whose main thread waits
forever for a lock or a disk still sends its heartbeat, and the other ranks wait for it in an all-reduce. MPI polls
while it waits, so a rank that works or waits for other ranks always uses CPU time, and a stalled rank uses none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_RANK = b"trtllm_pt.runtime.worker"  # part of a rank's command line


class StallDetector:
    """Detects a stalled rank while there is work.

    pids: the process of each rank, in the order of ranks. checks: a rank counts as stalled after this number of
    consecutive calls of `stalled` in which its CPU time has not changed. It is not a number of seconds because the
    whole machine may have been suspended.
    """

    def __init__(self, pids: Sequence[int], checks: int) -> None:
        self._pids = {rank: pid for rank, pid in enumerate(pids) if _is_rank(pid)}
        self._checks = checks
        self.reset()

    def reset(self) -> None:
        """Forget the past. Call this while there is no work, because an idle rank uses no CPU time."""
        self._last: dict[int, str | None] = {}
        self._unchanged = dict.fromkeys(self._pids, 0)

    def stalled(self) -> int | None:
        """Check all ranks. Returns the number of the first stalled rank, or None."""
        for rank, pid in self._pids.items():
            now = _main_threads_time(pid)
            same = now is not None and now == self._last.get(rank)
            self._unchanged[rank] = self._unchanged[rank] + 1 if same else 0
            self._last[rank] = now
        return next((rank for rank, count in self._unchanged.items() if count >= self._checks), None)


def _is_rank(pid: int) -> bool:
    """Return whether the process is one of our ranks on this machine."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and _RANK in path.read_bytes()


def _main_threads_time(pid: int) -> str | None:
    """Return the CPU time in nanoseconds, or None if the process is gone or the kernel does not count it."""
    try:
        used, *_ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return None
    return None if used == "0" else used
