"""Measurements that need all ranks from the start: joined under mpirun, or started again under it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from trtllm_pt.errors import MPI_OF_EMBEDDED, UsageError
from trtllm_pt.job.launchers import launched_ranks

if TYPE_CHECKING:
    from mpi4py import MPI

_NAP = 0.01


def join_ranks(ranks: int | None) -> MPI.Intracomm:
    """All ranks of mpirun. Without one, this process becomes an mpirun of `ranks` that runs the same command.

    Raises UsageError where mpirun started another number than `ranks`, or neither says how many.
    """
    from trtllm_pt.job.mpirun import find_mpirun, launch
    from trtllm_pt.job.world import World, import_mpi

    if launched_ranks() is None:
        if ranks is None:
            raise UsageError("--ranks is missing: how many to start, where mpirun did not")
        mpirun = find_mpirun(MPI_OF_EMBEDDED)
        os.execve(mpirun, *launch(mpirun, (ranks, [sys.executable, *sys.orig_argv[1:]])))
    world = World.join(ranks, MPI_OF_EMBEDDED)
    return world.comm or import_mpi(MPI_OF_EMBEDDED).COMM_WORLD


def wait_for_rank_0(comm: MPI.Intracomm, value: Any = None) -> Any:
    """Rank 0's value, on all ranks; the others sleep until it is there, for it may take minutes."""
    if comm.rank == 0:
        for rank in range(1, comm.size):
            comm.send(value, rank)
        return value
    while not comm.Iprobe(0):
        time.sleep(_NAP)
    return comm.recv(source=0)
