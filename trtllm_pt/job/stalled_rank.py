"""Finds a rank that is alive and does not work, by its processor time.

A rank that dies is seen by mpirun, and one that is stopped by the others. One whose main thread waits for ever, for a
lock or a disk, goes on telling them that it is there, and they wait for it in an all-reduce. MPI keeps a processor busy
there: whoever works, or waits for others, uses some of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_RANK = b"trtllm_pt.runtime.worker"  # in its command line


class Silence:
    """Of the processes `pids`, by rank, looked at now and then while there is work. checks: how many looks in a row may
    see no change. (Not seconds: the whole machine may have been asleep.)"""

    def __init__(self, pids: Sequence[int], checks: int) -> None:
        self._pids = {rank: pid for rank, pid in enumerate(pids) if _is_rank(pid)}
        self._checks = checks
        self.reset()

    def reset(self) -> None:
        """There is no work: all are silent."""
        self._last: dict[int, str | None] = {}
        self._unchanged = dict.fromkeys(self._pids, 0)

    def look(self) -> int | None:
        """The first rank that is silent; None: all work."""
        for rank, pid in self._pids.items():
            now = _main_threads_time(pid)
            same = now is not None and now == self._last.get(rank)
            self._unchanged[rank] = self._unchanged[rank] + 1 if same else 0
            self._last[rank] = now
        return next((rank for rank, count in self._unchanged.items() if count >= self._checks), None)


def _is_rank(pid: int) -> bool:
    """Whether it is one of ours, on this machine."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and _RANK in path.read_bytes()


def _main_threads_time(pid: int) -> str | None:
    """Nanoseconds on a processor; None: it is gone, or this kernel does not say."""
    try:
        used, *_ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    except (OSError, ValueError):
        return None
    return None if used == "0" else used
