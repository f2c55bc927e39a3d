"""Finds the rank of a job that exited first, and how it exited: the other ranks exit because of it."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Sequence


class FirstExit:
    """Watches processes, in a thread, until the first of them exits.

    This is more reliable than mpirun's output: on a busy machine, mpirun may name a rank that it stopped itself because
    of the first one. `pid` is the process that exited first. It is None while all processes run, if several of them had
    exited before the thread looked, and if the kernel does not offer pidfd_open.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self.pid: int | None = None
        threading.Thread(target=self._wait, args=(pids,), daemon=True).start()

    def _wait(self, pids: Sequence[int]) -> None:
        watched: dict[int, int] = {}  # descriptor -> pid
        poll = select.poll()
        try:
            for pid in pids:
                descriptor = os.pidfd_open(pid)
                watched[descriptor] = pid
                poll.register(descriptor, select.POLLIN)
            exited = poll.poll()
            if len(exited) == 1:
                self.pid = watched[exited[0][0]]
        except (AttributeError, OSError):  # the kernel is old, or one of the processes is gone
            return
        finally:
            for descriptor in watched:
                os.close(descriptor)


def first_exit(
    log: str, pids: Sequence[int], first: int | None = None, hosts: Sequence[str] | None = None
) -> str | None:
    """Return one clause that says which rank exited first, and how, from the output of MPICH's or Open MPI's mpirun.

    log: the output of mpirun. pids: the process of each rank, in the order of ranks. first: the process that was seen
    to exit first, if known; mpirun may name another one. hosts: the machine of each rank, if there are several.
    Returns None if the output names no rank.
    """
    if (found := re.search(r"PID (\d+) RUNNING AT (\S+)", log)) and int(found[1]) in pids:
        if first is not None and first != int(found[1]):
            return f"rank {pids.index(first)} (process {first}) has exited"
        rank, code = _rank_of(int(found[1]), found[2], pids, hosts), re.search(r"EXIT CODE: (\d+)", log)
        verb = "was killed by signal" if "(signal" in log and code else "exited with status"
        how = f"{verb} {code and code[1]}"
        where = f" on {hosts[rank]}" if hosts is not None else ""
        return f"rank {rank} (process {found[1]}{where}) {how}"
    if found := re.search(r"process rank (\d+) with PID (\d+) on node \S+ exited on\s+signal (\d+)", log):
        return f"rank {found[1]} (process {found[2]}) was killed by signal {found[3]}"
    if found := re.search(r"Process name: \[.*,(\d+)\]\s+Exit code:\s+(\d+)", log):
        return f"rank {found[1]} exited with status {found[2]}"
    return None


def _rank_of(pid: int, host: str, pids: Sequence[int], hosts: Sequence[str] | None) -> int:
    """Return the rank of a process. Processes on different machines may have the same number."""
    ranks = [rank for rank, its in enumerate(pids) if its == pid]
    return next((rank for rank in ranks if hosts is not None and hosts[rank] == host), ranks[0])
