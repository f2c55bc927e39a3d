"""Finds out, from the environment, which launcher started this process and with how many ranks. MPI is not imported."""

from __future__ import annotations

import os

# The name of each launcher, and the environment variable in which it passes the number of ranks.
LAUNCHERS = {"MPICH's mpirun": "PMI_SIZE", "Open MPI's mpirun": "OMPI_COMM_WORLD_SIZE"}
# When a job aborts, mpirun drops output that it has not passed on yet. So a rank waits this long before it aborts.
SECONDS_TO_BE_HEARD = 0.5
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
_RANKS_ON_MACHINE = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


def launched_ranks() -> int | None:
    """Return the number of ranks that the launcher of this process started, or None if it has no launcher."""
    for variable in LAUNCHERS.values():
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None


def launched_rank() -> int:
    """Return the number of this rank, from 0. Without a launcher it is 0."""
    return _number(_RANKS)


def first_on_machine() -> bool:
    """Return whether this process is the launcher's first rank on this machine. Without a launcher it is."""
    return _number(_RANKS_ON_MACHINE) == 0


def _number(variables: tuple[str, ...]) -> int:
    return next((int(os.environ[name]) for name in variables if os.environ.get(name, "").isdigit()), 0)
