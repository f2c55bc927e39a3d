"""Stops processes that this process has started, and reads their output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def end(
    process: subprocess.Popen[Any], patience: float, polite: Sequence[signal.Signals] = (signal.SIGTERM,)
) -> int | None:
    """Stop a process and, if it leads a process group (`start_new_session=True`), the whole group.

    The signals of `polite` are sent one after the other, and SIGKILL last; after each of them the process has
    `patience` seconds to exit. Returns the exit status, or None if the process survives SIGKILL, for example because it
    waits for a broken disk.
    """
    for number in (*polite, signal.SIGKILL):
        if process.poll() is not None:
            break
        _send(process, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    return process.poll()


def _send(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Send a signal to a child process or its group. The child has not been reaped, so its pid cannot be another's."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def last_line(printed: str) -> str | None:
    """Return the last line of `printed` that has text, or None. mpirun frames its messages with lines of `-` or `=`."""
    return next((line.strip() for line in reversed(printed.splitlines()) if line.strip(" -=")), None)
