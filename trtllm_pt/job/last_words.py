"""Reports the error of a rank to the owner of its job: the rank writes a line to stderr, and the owner reads it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator

from trtllm_pt.errors import MachineError, RunError, TrtllmPtError, UsageError
from trtllm_pt.job.launchers import launched_rank, several_machines

# Within this time, mpirun detects that a rank is dead, reports which one, and stops the other ranks.
MPIRUN_SECONDS = 3.0


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Exit this process, and so stop the whole job, if the block raises an exception.

    The reason is written to stderr, where `read_last_words` finds it.
    """
    try:
        yield
    except TrtllmPtError as error:
        # If all ranks find the same fault, each of them reports it, and the owner reads the first report.
        _end("usage" if isinstance(error, UsageError) else "error", with_machine(error), error.exit_status)
    except Exception as error:
        # MPI may report a dead rank to this one before mpirun detects it, and only mpirun knows which rank died, and
        # how.
        time.sleep(MPIRUN_SECONDS)
        traceback.print_exc()
        who = f"rank {launched_rank()} (process {os.getpid()})"
        failed = RunError(f"{who} failed: {' '.join(str(error).split())}")
        _end("error", with_machine(failed), RunError.exit_status)


def with_machine(error: Exception) -> str:
    """Return the text of an error, which names this machine if the job has others."""
    if isinstance(error, MachineError) or not several_machines():
        return str(error)
    return f"{socket.gethostname()}: {error}"


def _end(kind: str, text: str, status: int) -> None:
    os.write(2, f"trtllm-pt: {kind}: {text}\n".encode())  # in one call, so that the lines of several ranks do not mix
    os._exit(status)


def read_last_words(log: str) -> TrtllmPtError | None:
    """Return the first error that a rank reported in `log`, the output of all ranks, or None if there is none."""
    found = re.search(r"^trtllm-pt: (usage|error): (.*)$", log, re.MULTILINE)
    if found is None:
        return None
    return UsageError(found[2]) if found[1] == "usage" else RunError(found[2])
