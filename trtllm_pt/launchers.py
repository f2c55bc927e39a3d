"""Who started this process, told by its environment, without importing MPI."""

from __future__ import annotations

import os

# A launcher says so in the environment: its name, and the variable that has the number of ranks.
LAUNCHERS = {"MPICH's mpirun": "PMI_SIZE", "Open MPI's mpirun": "OMPI_COMM_WORLD_SIZE"}


def launched_ranks() -> int | None:
    """How many ranks the launcher that started this process says it started; None: no launcher."""
    for variable in LAUNCHERS.values():
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None
