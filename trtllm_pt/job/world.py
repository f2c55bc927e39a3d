"""The ranks of this process's job, and their collectives. torch is not imported, and MPI only for several ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.job.interface import bind_mpi
from trtllm_pt.job.launchers import SECONDS_TO_BE_HEARD, launched_ranks, launcher_name
from trtllm_pt.job.mpirun import no_mpi
from trtllm_pt.job.shared_memory import check_shared_memory

if TYPE_CHECKING:
    from mpi4py import MPI
    from typing_extensions import Self

_LEAST_SHARED_MEMORY = 1_000_000  # bytes; with less, no rank starts
T = TypeVar("T")


class World:
    """The position (`rank`) of this process among the `size` ranks of its job. `comm` is None for a single process."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        self.comm = comm
        self.rank, self.size = (comm.rank, comm.size) if comm is not None else (0, 1)

    @classmethod
    def join(cls, ranks: int | None, hint: str) -> Self:
        """Join the ranks that were started together with this process, on a communicator of their own.

        After this call, an uncaught exception in one rank aborts all ranks. ranks: the required number of ranks, or
        None for any number. hint: what to install if MPI is missing. Raises UsageError if MPI is missing, if the
        launcher started a different number of ranks, if the launcher belongs to another MPI than mpi4py, or if
        /dev/shm is full or cannot be written to.
        """
        launched = launched_ranks()
        if launched is None and ranks == 1:
            return cls(None)
        if launched in (None, 1) and ranks is None and "mpi4py.MPI" not in sys.modules:
            return cls(None)
        if launched is not None:  # checked in the environment, before any rank waits for another
            _check_number(ranks, launched)
            if launched > 1:
                # Every rank must find the same, and the other ranks may have taken their memory already.
                check_shared_memory(_LEAST_SHARED_MEMORY)
        mpi = import_mpi(hint)
        comm = mpi.COMM_WORLD
        if launched is not None and launched > 1 and comm.size == 1:
            raise UsageError(
                f"{launcher_name()} started {launched} ranks, but mpi4py here uses {mpi_name(mpi)}, so each rank is "
                "alone: start them with that MPI's mpirun, or with `srun --mpi=pmi2` in Slurm"
            )
        _check_number(ranks, comm.size)
        if comm.size == 1:
            return cls(None)
        end_all_on_an_exception(comm)
        return cls(comm.Dup())

    @classmethod
    def joined(cls) -> Self | None:
        """Return the ranks of this process if it has already initialised MPI with more than one rank, else None."""
        mpi: Any = sys.modules.get("mpi4py.MPI")
        if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.size == 1:
            return None
        return cls(mpi.COMM_WORLD)

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        return value if self.comm is None else self.comm.bcast(value)

    def gather_all(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of ranks, on every rank."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def nodes(self) -> list[list[int]]:
        """Return the ranks of each node, as MPI places them: the ranks of a node can share memory."""
        if self.comm is None:
            return [[0]]
        near = self.comm.Split_type(sys.modules["mpi4py.MPI"].COMM_TYPE_SHARED)
        first = near.bcast(self.rank)
        near.Free()
        ranks: dict[int, list[int]] = {}
        for rank, node in enumerate(self.comm.allgather(first)):
            ranks.setdefault(node, []).append(rank)
        return list(ranks.values())

    def barrier(self) -> None:
        """Wait until all ranks have made this call."""
        if self.comm is not None:
            self.comm.Barrier()

    def together(self, work: Callable[[], T]) -> T:
        """Call `work` on every rank and return its result.

        If `work` fails on any rank, its exception is raised on all ranks, so that no rank waits for one that has
        failed. An exception that does not belong to this package is raised as RunError.
        """
        try:
            result, failure = work(), None
        except TrtllmPtError as error:
            failure = error
        except Exception as error:
            failure = RunError(f"{type(error).__name__}: {' '.join(str(error).split())}; nothing was kept")
        for found in self.gather_all(failure):
            if found is not None:
                raise found
        return result

    def abort(self, status: int = 1) -> None:
        """Stop all ranks, which may be waiting for this one in a collective. mpirun first passes on their output."""
        if self.comm is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(SECONDS_TO_BE_HEARD)
            self.comm.Abort(status)


def _check_number(ranks: int | None, started: int) -> None:
    if ranks not in (None, started):
        needed = f"{ranks} ranks are needed" if ranks != 1 else "1 rank is needed"
        raise UsageError(f"{needed}, but {started} were started: use `mpirun -n {ranks}`")


def import_mpi(hint: str) -> Any:
    """Return the module mpi4py.MPI, initialised. hint: what to install. Raises UsageError if MPI is missing."""
    bind_mpi()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"{no_mpi(hint)} ({error})") from None
    return MPI


def mpi_name(mpi: Any) -> str:
    """Return the name and version of the MPI library behind mpi4py, such as `MPICH 5.0.2`."""
    name, version = mpi.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def end_all_on_an_exception(comm: MPI.Intracomm) -> None:
    """Abort all ranks of `comm` when an uncaught exception ends this process: they may wait for it in a collective."""
    report = sys.excepthook

    def end_all(*error: Any) -> None:
        report(*error)
        World(comm).abort()

    sys.excepthook = end_all
