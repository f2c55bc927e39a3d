"""Which ranks a process belongs to, and what they do together."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from trtllm_pt.errors import MPI_OF_EMBEDDED, RunError, UsageError
from trtllm_pt.job.launchers import LAUNCHERS
from trtllm_pt.job.mpirun import find_mpirun, launch
from trtllm_pt.job.world import World

HINT = "some MPI"
# Prints one line of JSON on rank 0. `MODE` says what goes wrong on rank 1.
RANK = """
import json, os, sys
from trtllm_pt.errors import UsageError
from trtllm_pt.job.world import World

mode = sys.argv[1]
alone = World.joined() is None
world = World.join(None, "some MPI")
def work():
    if world.rank == 1 and mode == "mistake":
        raise UsageError("rank 1 is wrong")
    if world.rank == 1 and mode == "bug":
        raise KeyError("rank 1")
    return world.rank
try:
    done = world.together(work)
except Exception as error:
    done = f"{type(error).__name__}: {error}"
found = [alone, world.rank, world.size, world.broadcast(os.getpid()), World.joined().size, done]
world.barrier()
every = world.gather_all(found)
if world.rank == 0:
    print(json.dumps(every), flush=True)
if mode == "exception" and world.rank == 1:
    raise RuntimeError("the end")
if mode == "exception":
    world.barrier()
"""


def ranks(count: int, mode: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", RANK, mode]
    command, environment = launch(find_mpirun(MPI_OF_EMBEDDED), (count, program))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("mode", "done"),
    [
        ("good", [0, 1]),
        ("mistake", ["UsageError: rank 1 is wrong"] * 2),
        ("bug", ["RunError: KeyError: 'rank 1'; nothing was kept"] * 2),
    ],
)
def test_two_ranks(mode: str, done: list[object]) -> None:
    finished = ranks(2, mode)
    assert finished.returncode == 0, finished.stderr
    every = json.loads(finished.stdout)
    assert [found[:3] for found in every] == [[True, 0, 2], [True, 1, 2]]
    assert every[0][3] == every[1][3], "rank 0's process"
    assert [found[4:] for found in every] == [[2, each] for each in done]


def test_an_exception_on_one_rank_ends_the_others() -> None:
    finished = ranks(2, "exception")
    assert finished.returncode != 0 and "RuntimeError: the end" in finished.stderr


def test_a_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in LAUNCHERS.values():
        monkeypatch.delenv(variable, raising=False)
    world = World.join(1, HINT)
    assert (world.rank, world.size, world.comm) == (0, 1, None)
    assert world.broadcast("a") == "a" and world.gather_all("a") == ["a"]
    world.barrier()
    world.abort()  # there are no others
    assert world.together(lambda: 3) == 3
    with pytest.raises(RunError, match="ZeroDivisionError"):
        world.together(lambda: 1 // 0)


def test_another_number_of_ranks_is_refused_before_mpi_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHERS["MPICH's mpirun"], "3")
    with pytest.raises(UsageError, match=r"2 ranks .* 3 were started: use `mpirun -n 2`"):
        World.join(2, HINT)


def test_the_world_imports_neither_mpi_nor_torch() -> None:
    code = "import sys, trtllm_pt.job.world; print({'mpi4py', 'torch', 'numpy'} & set(sys.modules))"
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS.values()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
