"""Which launcher started this process, as one of how many ranks. Its environment tells; MPI is not imported."""

from __future__ import annotations

import os

# The name of each launcher, and the environment variable in which it tells the number of ranks.
LAUNCHERS = {"MPICH's mpirun": "PMI_SIZE", "Open MPI's mpirun": "OMPI_COMM_WORLD_SIZE"}
# mpirun drops what an aborted job has printed and it has not passed on yet: a rank waits so long before it aborts.
SECONDS_TO_BE_HEARD = 0.5
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
_RANKS_ON_MACHINE = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


def launched_ranks() -> int | None:
    """The number of ranks that the launcher of this process says it started; None: no launcher started it."""
    for variable in LAUNCHERS.values():
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None


def launched_rank() -> int:
    """The number of this rank, from 0; 0 without a launcher."""
    return _number(_RANKS)


def first_on_machine() -> bool:
    """Whether this process is the first rank that a launcher started on this machine; true without a launcher."""
    return _number(_RANKS_ON_MACHINE) == 0


def _number(variables: tuple[str, ...]) -> int:
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, "").isdigit()), 0)
