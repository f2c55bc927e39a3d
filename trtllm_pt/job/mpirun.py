"""Finds mpirun, and makes the command and the environment that start the ranks of a job. MPI is not imported."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from trtllm_pt.errors import UsageError

# Open MPI refuses to run as root, as containers do, until it is told that root is meant; and it ties each rank with all
# its threads to one core. MPICH does neither, and ignores these.
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",  # Open MPI 4
    "PRTE_MCA_hwloc_default_binding_policy": "none",  # Open MPI 5
}
# What an mpirun tells the ranks that it starts. An mpirun that is started by such a rank must not believe it.
_OF_A_JOB = ("PMI_", "PMIX_")


class Launch(NamedTuple):
    """A command line, and the environment to start it in."""

    command: list[str]
    environment: dict[str, str]


def find_mpirun(hint: str) -> str:
    """The mpirun of this Python environment, else the one on PATH. Raises UsageError, with the installation hint, where
    there is none."""
    own = Path(sys.prefix) / "bin" / "mpirun"
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError(no_mpi(hint))
    return found


def no_mpi(hint: str) -> str:
    """The message where MPI is missing. hint: what to install."""
    return f"no MPI: more than one rank needs {hint}"


def launch(
    mpirun: str,
    *programs: tuple[int, Sequence[str]],
    options: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Launch:
    """Start one job with `mpirun`: for each of `programs` a number of ranks and the command that they run.

    options: of mpirun itself. environment: what the ranks are to have; what the user has set for Open MPI there counts.
    """
    command = [mpirun, *options]
    for number, (ranks, program) in enumerate(programs):
        command += [*([":"] if number else []), "-n", str(ranks), *program]
    outer = {name: value for name, value in environment.items() if not name.startswith(_OF_A_JOB)}
    return Launch(command, {**_OPEN_MPI, **outer})
