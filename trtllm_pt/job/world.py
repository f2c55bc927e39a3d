"""The ranks of a job, and the messages between them that are not boundaries: two hops a step.

One rank needs no MPI. All others meet through mpi4py; the boundaries' all-reduces run inside the graph on the same
communicator.
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from trtllm_pt.errors import UsageError
from trtllm_pt.job.launchers import LAUNCHERS, SECONDS_TO_BE_HEARD, launched_ranks
from trtllm_pt.job.mpirun import NO_MPI

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_STOP = memoryview(array("q", [0]))  # a plan's first number is its length, never 0
# A follower that waits for work polls at once, then ever more seldom: running, it loses no time; idle, no core.
_SPIN_SECONDS, _LONGEST_SLEEP = 0.002, 0.002


class World:
    """This process's place among `size` ranks."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        self.comm = comm
        self.rank, self.size = (comm.rank, comm.size) if comm is not None else (0, 1)
        self.hops = 0

    @classmethod
    def join(cls, ranks: int) -> World:
        """The ranks that this process was started with.

        Raises UsageError where they are not `ranks`, or where the launcher belongs to another MPI than mpi4py.
        """
        launched = launched_ranks()
        if launched is None and ranks == 1:
            return cls(None)
        if launched not in (None, ranks):  # told from the environment, before anybody waits for anybody
            raise UsageError(f"this engine has {ranks} ranks, but {launched} were started: use `mpirun -n {ranks}`")
        MPI = import_mpi()
        comm = MPI.COMM_WORLD
        if launched is not None and launched > 1 and comm.size == 1:
            launcher = next(name for name, variable in LAUNCHERS.items() if variable in os.environ)
            raise UsageError(
                f"{launcher} started {launched} ranks, but mpi4py here uses {mpi_name(MPI)}, so each is alone: "
                f"start them with that MPI's mpirun"
            )
        if comm.size != ranks:
            raise UsageError(f"this engine has {ranks} ranks, but {comm.size} were started: use `mpirun -n {ranks}`")
        if ranks == 1:
            return cls(None)
        end_all_on_an_exception(comm)
        return cls(comm.Dup())

    def twin(self) -> World:
        """The same ranks, with messages apart from these."""
        return World(None if self.comm is None else self.comm.Dup())

    def bind(self) -> None:
        """Give the boundaries' all-reduces this communicator; the op library must be loaded."""
        if self.comm is not None:
            torch.ops.trtllm_pt.set_communicator(self.comm.py2f())

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        return value if self.comm is None else self.comm.bcast(value)

    def gather_all(self, value: T) -> list[T]:
        """Every rank's value, on all ranks."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def abort(self) -> None:
        """End all ranks now."""
        if self.comm is not None:
            time.sleep(SECONDS_TO_BE_HEARD)
            self.comm.Abort(1)

    def barrier(self) -> None:
        if self.comm is not None:
            self.comm.Barrier()

    def send_plan(self, numbers: memoryview | None) -> None:
        """A step's message, rank 0 to all others; None: stop."""
        if self.comm is None:
            return
        requests = [self.comm.Isend(_STOP if numbers is None else numbers, dest) for dest in range(1, self.size)]
        for request in requests:
            request.Wait()
        self.hops += 1

    def receive_plan(self, room: memoryview) -> bool:
        """The next message of rank 0, into `room` for the longest; False: stop."""
        assert self.comm is not None
        self.comm.Recv(room, 0)
        return bool(room[0])

    def gather_logits(self, logits: Tensor) -> Tensor | None:
        """This rank's float32 [R, V / ranks] -> rank 0: all [R, V]; elsewhere None."""
        if self.comm is None:
            return logits
        self.hops += 1
        if self.rank:
            self.comm.Gather(logits.numpy(), None, 0)
            return None
        parts = torch.empty(self.size, *logits.shape)
        self.comm.Gather(logits.numpy(), parts.numpy(), 0)
        return parts.transpose(0, 1).flatten(1)


def first_to_speak(worlds: Sequence[World]) -> World:
    """Waits on a rank but 0 for a message of rank 0; the world in which it came."""
    began, pause = time.monotonic(), 0.0
    while True:
        for world in worlds:
            assert world.comm is not None
            if world.comm.Iprobe(0):
                return world
        if time.monotonic() - began > _SPIN_SECONDS:
            pause = min(_LONGEST_SLEEP, pause + 1e-5)
            time.sleep(pause)


def import_mpi() -> Any:
    """mpi4py's MPI module, initialised. Raises UsageError where it is missing."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"{NO_MPI['embedded']} ({error})") from None
    return MPI


def mpi_name(MPI: Any) -> str:
    """The library behind mpi4py, such as `MPICH 5.0.2`."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def end_all_on_an_exception(comm: MPI.Intracomm) -> None:
    """A rank that ends by an exception takes the others along: they may wait for it in a collective."""
    report = sys.excepthook

    def end_all(*error: Any) -> None:
        report(*error)
        sys.stderr.flush()
        time.sleep(SECONDS_TO_BE_HEARD)
        comm.Abort(1)

    sys.excepthook = end_all
