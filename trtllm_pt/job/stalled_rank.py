"""Finds a rank that is alive but does not work, by its processor time.

mpirun sees a rank that dies, and the other ranks see one that is stopped. A rank whose main thread waits for ever, for
a lock or a disk, still sends its heartbeat, and the others wait for it in an all-reduce. MPI polls while it waits, so a
rank that works or waits for others always uses processor time, and a stalled one uses none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_RANK = b"trtllm_pt.runtime.worker"  # in its command line


class StallDetector:
    """Detects a stalled rank among the processes `pids`, in the order of ranks, while there is work.

    checks: after how many calls of `stalled` without a change in its processor time a rank counts as stalled. (It is
    not a number of seconds, for the whole machine may have been asleep.)
    """

    def __init__(self, pids: Sequence[int], checks: int) -> None:
        self._pids = {rank: pid for rank, pid in enumerate(pids) if _is_rank(pid)}
        self._checks = checks
        self.reset()

    def reset(self) -> None:
        """Start anew. To be called while there is no work, when no rank uses processor time."""
        self._last: dict[int, str | None] = {}
        self._unchanged = dict.fromkeys(self._pids, 0)

    def stalled(self) -> int | None:
        """Check all ranks. Returns the first that is stalled, or None."""
        for rank, pid in self._pids.items():
            now = _main_threads_time(pid)
            same = now is not None and now == self._last.get(rank)
            self._unchanged[rank] = self._unchanged[rank] + 1 if same else 0
            self._last[rank] = now
        return next((rank for rank, count in self._unchanged.items() if count >= self._checks), None)


def _is_rank(pid: int) -> bool:
    """Whether the process is one of our ranks on this machine."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and _RANK in path.read_bytes()


def _main_threads_time(pid: int) -> str | None:
    """Return the nanoseconds of processor time, or None if the process is gone or the kernel does not count them."""
    try:
        used, *_ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return None
    return None if used == "0" else used
