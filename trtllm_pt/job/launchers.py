"""Finds out, from the environment, which launcher started this process and with how many ranks. MPI is not imported."""

from __future__ import annotations

import os
from typing import NamedTuple

# When a job aborts, mpirun drops output that it has not passed on yet. So a rank waits this long before it aborts.
SECONDS_TO_BE_HEARD = 0.5


class _Launcher(NamedTuple):
    """A launcher, and the environment variables in which it passes numbers to a rank."""

    name: str
    ranks: str
    rank: str
    ranks_here: str | None  # the number of ranks on this machine
    rank_here: str  # the number of this rank among them


# The first whose variables are set has started this process. An mpirun in a Slurm allocation uses srun to reach the
# nodes, so its ranks have the variables of both, and those of mpirun count. Slurm's PMI-2 sets those of PMI alone.
_MPICH = _Launcher("MPICH's mpirun", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID")
_LAUNCHERS = (
    _MPICH,
    _Launcher(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", None, "SLURM_LOCALID"),
)
LAUNCHERS = {launcher.name: launcher.ranks for launcher in _LAUNCHERS}
_SRUN_NODES = "SLURM_STEP_NUM_NODES"


def launcher_name() -> str | None:
    """Return the name of the launcher of this process, or None if it has none."""
    launcher = _launcher()
    if launcher is _MPICH and _number(_MPICH.ranks_here) is None and _number(_SRUN_NODES) is not None:
        return "srun"
    return launcher.name if launcher else None


def launched_ranks() -> int | None:
    """Return the number of ranks that the launcher of this process started, or None if it has no launcher."""
    launcher = _launcher()
    return _number(launcher.ranks) if launcher else None


def launched_rank() -> int:
    """Return the number of this rank, from 0. Without a launcher it is 0."""
    launcher = _launcher()
    return (_number(launcher.rank) or 0) if launcher else 0


def first_on_machine() -> bool:
    """Return whether this process is the launcher's first rank on this machine. Without a launcher it is."""
    launcher = _launcher()
    names = (launcher.rank_here, "SLURM_LOCALID") if launcher else ()
    return not next((number for name in names if (number := _number(name)) is not None), 0)


def several_machines() -> bool:
    """Return whether the launcher started ranks on other machines, too."""
    launcher = _launcher()
    if launcher is None:
        return False
    here = _number(launcher.ranks_here)
    return (_number(_SRUN_NODES) or 1) > 1 if here is None else here < (_number(launcher.ranks) or 1)


def _launcher() -> _Launcher | None:
    for launcher in _LAUNCHERS:
        ranks = _number(launcher.ranks)
        # A step of one task is usually a shell (`srun --pty bash`), from which users start commands as from any other.
        if ranks is not None and (ranks > 1 or launcher.name != "srun"):
            return launcher
    return None


def _number(variable: str | None) -> int | None:
    value = os.environ.get(variable or "", "")
    return int(value) if value.isdigit() else None
