"""Which of several processes ended first. mpirun names one that it found dead, which on a busy machine may be one that
it ended itself because of the first."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence


class FirstEnded:
    """`pid`: the first to end; None: none has, or several had before anybody looked, or the system cannot tell."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pid: int | None = None
        threading.Thread(target=self._wait, args=(pids,), daemon=True).start()

    def _wait(self, pids: Sequence[int]) -> None:
        watched: dict[int, int] = {}  # by descriptor
        poll = select.poll()
        try:
            for pid in pids:
                descriptor = os.pidfd_open(pid)
                watched[descriptor] = pid
                poll.register(descriptor, select.POLLIN)
            ended = poll.poll()
            if len(ended) == 1:
                self.pid = watched[ended[0][0]]
        except (AttributeError, OSError):  # an old kernel, or one of them is gone
            return
        finally:
            for descriptor in watched:
                os.close(descriptor)
