"""Which rank exited first, as its mpirun or the kernel tells."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from trtllm_pt.errors import MPI_OF_EMBEDDED
from trtllm_pt.job.first_exit import FirstExit, first_exit
from trtllm_pt.job.last_words import read_last_words
from trtllm_pt.job.mpirun import find_mpirun

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
        (MPICH, "rank 0 (process 1200) exited with status 9"),
        (MPICH + SIGNAL, "rank 0 (process 1200) was killed by signal 9"),
        (OPEN_MPI_SIGNAL, "rank 1 (process 1201) was killed by signal 9"),
        (OPEN_MPI_STATUS, "rank 1 exited with status 3"),
        ("a rank's own words", None),
    ],
)
def test_what_mpirun_prints(log: str, said: str | None) -> None:
    assert first_exit(log, [1200, 1201]) == said


def test_mpirun_may_name_a_rank_that_it_ended_itself() -> None:
    log = "=   PID 1200 RUNNING AT here\n=   EXIT CODE: 9\nTERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
    assert first_exit(log, [1200, 1201], 1200) == "rank 0 (process 1200) was killed by signal 9"
    assert first_exit(log, [1200, 1201], 1201) == "rank 1 (process 1201) has exited"


def test_the_first_to_end() -> None:
    first, second = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    with first, second:
        seen = FirstExit([first.pid, second.pid])
        second.kill()
        deadline = time.monotonic() + 10
        while seen.pid is None and time.monotonic() < deadline:
            time.sleep(0.01)
        first.kill()
        assert seen.pid == second.pid


RANK = """
import os, signal, time
from mpi4py import MPI
from trtllm_pt.job.last_words import last_words

pids = MPI.COMM_WORLD.allgather(os.getpid())
if MPI.COMM_WORLD.rank == 0:
    print("pids", *pids, flush=True)
with last_words():
    if MPI.COMM_WORLD.rank == 1:
        time.sleep(1)  # until the owner watches
        {rank_1}
    raise ValueError("what MPI says")
"""


@pytest.mark.parametrize(
    ("rank_1", "said"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            ["rank 1 (process {1}) was killed by signal 9", "rank 1 (process {1}) has exited"],
        ),
        ("time.sleep(60)", ["rank 0 (process {0}) failed: what MPI says"]),
    ],
    ids=["another rank died", "none did"],
)
def test_a_rank_that_fails_lets_mpirun_speak_first(rank_1: str, said: list[str]) -> None:
    """Rank 0 fails before mpirun knows that rank 1 is dead."""
    command = [
        find_mpirun(MPI_OF_EMBEDDED),
        "-n",
        "2",
        sys.executable,
        "-m",
        "mpi4py",
        "-c",
        RANK.format(rank_1=rank_1),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout is not None
        numbers = job.stdout.readline().split()[1:]
        pids = [int(number) for number in numbers]
        seen = FirstExit(pids)  # on a busy machine, mpirun may name the rank that it ended itself
        log, _ = job.communicate(timeout=60)
    reported = read_last_words(log)
    found = str(reported) if reported else first_exit(log, pids, seen.pid)
    assert found in [words.format(*numbers) for words in said]
    assert job.returncode != 0
