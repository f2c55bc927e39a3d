"""Ctrl-C ends the tests and every process that they have started, within seconds.

A test that waits for a build in a thread, or a server that finishes its requests, would hold up pytest otherwise.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 1.0  # between SIGTERM and SIGKILL


def end_processes_on_interruption() -> None:
    """Handle SIGINT in this process, even where a shell that started it in the background has it ignored."""
    signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_descendants, daemon=True).start()
    raise KeyboardInterrupt


def _end_descendants() -> None:
    """Until this process exits: what waits for a process that was ended may start the next one."""
    seen: set[int] = set()  # a process whose parent was ended is no longer below this one
    began = time.monotonic()
    while True:
        new = descendants(os.getpid()) - seen
        seen |= new
        if time.monotonic() - began < GRACE_SECONDS:
            _send(signal.SIGTERM, new)
        else:
            _send(signal.SIGKILL, seen)
        time.sleep(0.1)


def descendants(pid: int) -> set[int]:
    """All processes that a process has started, and theirs."""
    children: set[int] = set()
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            children |= {int(word) for word in path.read_text().split()}
    return children.union(*map(descendants, children))


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
