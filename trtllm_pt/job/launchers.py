"""Who started this process, told by its environment, without importing MPI."""

from __future__ import annotations

import os

# A launcher says so in the environment: its name, and the variable that has the number of ranks.
LAUNCHERS = {"MPICH's mpirun": "PMI_SIZE", "Open MPI's mpirun": "OMPI_COMM_WORLD_SIZE"}
# An aborted job's mpirun drops what it has not passed on yet: so a rank that has said why waits before it aborts.
SECONDS_TO_BE_HEARD = 0.5
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
_RANKS_ON_MACHINE = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


def launched_ranks() -> int | None:
    """How many ranks the launcher that started this process says it started; None: no launcher."""
    for variable in LAUNCHERS.values():
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None


def launched_rank() -> int:
    """This process's number among them; 0 without a launcher."""
    return _number(_RANKS)


def first_on_machine() -> bool:
    """Whether this process is the first of those that a launcher started on this machine."""
    return _number(_RANKS_ON_MACHINE) == 0


def _number(variables: tuple[str, ...]) -> int:
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, "").isdigit()), 0)
