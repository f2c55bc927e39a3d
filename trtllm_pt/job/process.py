"""Ends processes that this one has started, and reads what they printed."""

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
    """End a process, and with it the group that it leads (`start_new_session=True`), if it leads one.

    Each signal of `polite` is sent in turn, and SIGKILL at last; after each the process has `patience` seconds to exit.
    Returns its exit status; None: the system did not end it even so, as where it waits for a broken disk.
    """
    for number in (*polite, signal.SIGKILL):
        if process.poll() is not None:
            break
        _send(process, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    return process.poll()


def _send(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """The process is our child and has not been waited for: its number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def last_line(printed: str) -> str | None:
    """The last line that says something; None: there is none. mpirun frames what it says with lines of `-` or `=`."""
    return next((line.strip() for line in reversed(printed.splitlines()) if line.strip(" -=")), None)
