"""Which rank of a job exited first, and how: the others end because of it."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Sequence


class FirstExit:
    """Watches processes until the first of them exits. (mpirun names a rank that it found dead, which on a busy machine
    may be one that it ended itself because of the first.)

    `pid`: that process. None: none has exited yet, or several had before this looked, or the system cannot tell.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self.pid: int | None = None
        threading.Thread(target=self._wait, args=(pids,), daemon=True).start()

    def _wait(self, pids: Sequence[int]) -> None:
        watched: dict[int, int] = {}  # process by descriptor
        poll = select.poll()
        try:
            for pid in pids:
                descriptor = os.pidfd_open(pid)
                watched[descriptor] = pid
                poll.register(descriptor, select.POLLIN)
            exited = poll.poll()
            if len(exited) == 1:
                self.pid = watched[exited[0][0]]
        except (AttributeError, OSError):  # an old kernel, or one of them is gone
            return
        finally:
            for descriptor in watched:
                os.close(descriptor)


def first_exit(log: str, pids: list[int], first: int | None = None) -> str | None:
    """Which rank exited first, and how, by what MPICH's mpirun or Open MPI's has printed; None: it does not say.

    pids: the process of each rank. first: the process that was seen to exit first; mpirun may name another.
    """
    if (found := re.search(r"PID (\d+) RUNNING AT", log)) and int(found[1]) in pids:
        if first is not None and first != int(found[1]):
            return f"rank {pids.index(first)} (process {first}) has ended"
        rank, code = pids.index(int(found[1])), re.search(r"EXIT CODE: (\d+)", log)
        how = f"was ended by signal {code[1]}" if "(signal" in log and code else f"ended with status {code and code[1]}"
        return f"rank {rank} (process {found[1]}) {how}"
    if found := re.search(r"process rank (\d+) with PID (\d+) on node \S+ exited on\s+signal (\d+)", log):
        return f"rank {found[1]} (process {found[2]}) was ended by signal {found[3]}"
    if found := re.search(r"Process name: \[.*,(\d+)\]\s+Exit code:\s+(\d+)", log):
        return f"rank {found[1]} ended with status {found[2]}"
    return None
