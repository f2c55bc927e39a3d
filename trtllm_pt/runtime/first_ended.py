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
        try:
            watched = {os.pidfd_open(pid): pid for pid in pids}
        except (AttributeError, OSError):  # an old kernel, or one that is gone
            return
        threading.Thread(target=self._wait, args=(watched,), daemon=True).start()

    def _wait(self, watched: dict[int, int]) -> None:
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        ended = poll.poll()
        if len(ended) == 1:
            self.pid = watched[ended[0][0]]
        for descriptor in watched:
            os.close(descriptor)
