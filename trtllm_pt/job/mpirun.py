"""Finds mpirun, and builds the command and the environment that start the ranks of a job. MPI is not imported."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from trtllm_pt.errors import UsageError
from trtllm_pt.job.hosts import Hosts

# By default Open MPI refuses to run as root, which is usual in containers, and binds each rank with all its threads to
# one core. MPICH does neither, and ignores these variables.
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",  # Open MPI 4
    "PRTE_MCA_hwloc_default_binding_policy": "none",  # Open MPI 5
}
# With these, the ssh that mpirun starts exits 9 s after its host was lost; otherwise it would stay for many minutes.
_ALIVE = "-o ServerAliveInterval=3 -o ServerAliveCountMax=3"
_SSH = {"HYDRA_LAUNCHER_EXTRA_ARGS": _ALIVE, "OMPI_MCA_plm_rsh_args": _ALIVE, "PRTE_MCA_plm_ssh_args": _ALIVE}
# Variables that mpirun sets for the ranks that it starts. An mpirun that such a rank starts must not inherit them.
_OF_A_JOB = ("PMI_", "PMIX_")


class Launch(NamedTuple):
    """A command line, and the environment in which to start it."""

    command: list[str]
    environment: dict[str, str]


def find_mpirun(hint: str) -> str:
    """Return the path of the mpirun of this Python environment or, if it has none, of the one on PATH.

    hint: what to install if there is none. Raises UsageError, with the hint, if there is none.
    """
    own = Path(sys.prefix) / "bin" / "mpirun"
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise UsageError(no_mpi(hint))
    return found


def no_mpi(hint: str) -> str:
    """Return the error message for a missing MPI. hint: what to install."""
    return f"no MPI: more than one rank needs {hint}"


def launch(
    mpirun: str,
    *programs: tuple[int, Sequence[str]],
    options: Sequence[str] = (),
    hosts: Hosts | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Launch:
    """Return the command line and the environment that start one job. The job is not started here.

    mpirun: the path of mpirun. programs: pairs of a number of ranks and the command that these ranks run. options:
    options of mpirun itself. hosts: where the ranks run; None is this machine. environment: the environment of the
    ranks; its settings for Open MPI override the defaults of this module.
    """
    command = [mpirun, *options, *(hosts.options(mpirun) if hosts is not None else ())]
    for number, (ranks, program) in enumerate(programs):
        command += [*([":"] if number else []), "-n", str(ranks), *program]
    outer = {name: value for name, value in environment.items() if not name.startswith(_OF_A_JOB)}
    return Launch(command, {**_OPEN_MPI, **(_SSH if hosts is not None else {}), **outer})


def start_again(ranks: int, hint: str) -> NoReturn:
    """Replace this process by an mpirun whose ranks run the same command, on this machine or the hosts that are set.

    hint: what to install if there is no mpirun. Raises UsageError, naming the host, if one cannot run ranks.
    """
    mpirun, hosts = find_mpirun(hint), Hosts.from_environment()
    if hosts is not None:
        hosts.check(ranks)
    os.execve(mpirun, *launch(mpirun, (ranks, [sys.executable, *sys.orig_argv[1:]]), hosts=hosts))
