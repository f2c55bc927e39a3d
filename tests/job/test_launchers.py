"""What each launcher says of a rank in its environment."""

from __future__ import annotations

import os

import pytest

from trtllm_pt.job.launchers import (
    first_on_machine,
    launched_rank,
    launched_ranks,
    launcher_name,
    several_machines,
)

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"}
# Hydra reaches the nodes of an allocation with an srun of one task on each.
IN_SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}


@pytest.mark.parametrize(
    ("environment", "name", "ranks", "rank", "first", "several"),
    [
        ({}, None, None, 0, True, False),
        (HYDRA, "MPICH's mpirun", 4, 3, False, True),
        ({**HYDRA, "MPI_LOCALNRANKS": "4"}, "MPICH's mpirun", 4, 3, False, False),
        ({**IN_SRUN, **HYDRA}, "MPICH's mpirun", 4, 3, False, True),
        (OPEN_MPI, "Open MPI's mpirun", 4, 2, False, False),
        (SRUN, "srun", 4, 3, False, True),
        ({**SRUN, "PMI_SIZE": "4", "PMI_RANK": "3"}, "srun", 4, 3, False, True),  # srun --mpi=pmi2
        ({**SRUN, "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "1"}, "srun", 4, 3, True, False),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None, None, 0, True, False),  # srun --pty bash
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            None,
            None,
            0,
            True,
            False,
        ),  # an sbatch script
    ],
)
def test_what_a_launcher_says(
    environment: dict[str, str],
    name: str | None,
    ranks: int | None,
    rank: int,
    first: bool,
    several: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in os.environ:
        if variable.startswith(("PMI", "MPI_", "OMPI_", "SLURM_")):
            monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found = launcher_name(), launched_ranks(), launched_rank(), first_on_machine(), several_machines()
    assert found == (name, ranks, rank, first, several)
