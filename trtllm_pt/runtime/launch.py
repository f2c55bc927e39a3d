"""Who starts ranks, told without importing MPI or torch; and what both runtimes say."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from trtllm_pt.errors import INSTALL_EMBEDDED, UsageError

NO_MPI = f"no MPI: more than one rank needs mpi4py and MPICH, `{INSTALL_EMBEDDED}`"
CLOSED = "this engine is closed"
# A launcher says so in the environment: its name, and the variable that has the number of ranks.
LAUNCHERS = {"MPICH's mpirun": "PMI_SIZE", "Open MPI's mpirun": "OMPI_COMM_WORLD_SIZE"}


def launched_ranks() -> int | None:
    """How many ranks the launcher that started this process says it started; None: no launcher."""
    for variable in LAUNCHERS.values():
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return None


def find_mpirun() -> str:
    """The mpirun of this Python environment, else the one on PATH. Raises UsageError where there is none."""
    own = Path(sys.prefix) / "bin" / "mpirun"
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError(NO_MPI)
    return found
