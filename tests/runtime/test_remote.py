"""Who ended a job, as its mpirun tells it."""

from __future__ import annotations

import pytest

from trtllm_pt.runtime.remote import who_ended

RULE = "-" * 74
MPICH = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 1200 RUNNING AT node1
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
"""
SIGNAL = "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
OPEN_MPI_SIGNAL = f"""some words of a rank
{RULE}
prterun noticed that process rank 1 with PID 1201 on node node1 exited on
signal 9 (Killed).
{RULE}
"""
OPEN_MPI_STATUS = f"""{RULE}
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-node1-11290@1,1]
   Exit code:    3
{RULE}
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (MPICH, "rank 0 (process 1200) ended with status 9"),
        (MPICH + SIGNAL, "rank 0 (process 1200) was ended by signal 9"),
        (OPEN_MPI_SIGNAL, "rank 1 (process 1201) was ended by signal 9"),
        (OPEN_MPI_STATUS, "rank 1 ended with status 3"),
        ("a rank's own words", None),
    ],
)
def test_who_ended(log: str, said: str | None) -> None:
    assert who_ended(log, [1200, 1201]) == said
