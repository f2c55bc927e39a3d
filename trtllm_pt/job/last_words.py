"""How a rank that its owner has started reports the error that ends it."""

from __future__ import annotations

import contextlib
import os
import re
import time
import traceback
from collections.abc import Iterator

from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.job.launchers import launched_rank

# In this time mpirun has seen that a rank is dead, has said which, and has ended the other ranks.
MPIRUN_SECONDS = 3.0


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """End this process where the block raises an exception, and so the whole job. The reason goes to stderr, where
    `read_last_words` finds it."""
    try:
        yield
    except TrtllmPtError as error:
        # All ranks may find the same fault: each reports it, the owner reads the first report, and the job ends.
        _end("usage" if isinstance(error, UsageError) else "error", str(error), error.exit_status)
    except Exception as error:
        # Where a rank is dead, the others may hear so from MPI before mpirun does, which alone knows who died, and how.
        time.sleep(MPIRUN_SECONDS)
        traceback.print_exc()
        who = f"rank {launched_rank()} (process {os.getpid()})"
        _end("error", f"{who} failed: {' '.join(str(error).split())}", RunError.exit_status)


def _end(kind: str, text: str, status: int) -> None:
    os.write(2, f"trtllm-pt: {kind}: {text}\n".encode())  # in one piece: lines of several ranks would come mixed
    os._exit(status)


def read_last_words(log: str) -> TrtllmPtError | None:
    """The error that the first rank reported in what all of them printed; None: no rank reported one."""
    found = re.search(r"^trtllm-pt: (usage|error): (.*)$", log, re.MULTILINE)
    if found is None:
        return None
    return UsageError(found[2]) if found[1] == "usage" else RunError(found[2])
