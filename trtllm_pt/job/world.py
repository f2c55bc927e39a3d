"""Which ranks this process belongs to, and what they do together. Neither torch nor, for one rank, MPI is imported."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.job.launchers import LAUNCHERS, SECONDS_TO_BE_HEARD, launched_ranks
from trtllm_pt.job.mpirun import no_mpi

if TYPE_CHECKING:
    from mpi4py import MPI
    from typing_extensions import Self

T = TypeVar("T")


class World:
    """This process's place, `rank`, among the `size` ranks of its job. comm: None for a process that is alone."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        self.comm = comm
        self.rank, self.size = (comm.rank, comm.size) if comm is not None else (0, 1)

    @classmethod
    def join(cls, ranks: int | None, hint: str) -> Self:
        """The ranks that this process was started with, on a communicator of their own.

        From here on an exception that ends one rank ends all. ranks: how many there must be; None: however many there
        are. hint: what to install where MPI is missing. Raises UsageError where MPI is missing, where another number of
        ranks was started, or where the launcher belongs to another MPI than mpi4py.
        """
        launched = launched_ranks()
        if launched is None and ranks == 1:
            return cls(None)
        if launched in (None, 1) and ranks is None and "mpi4py.MPI" not in sys.modules:
            return cls(None)
        if launched is not None:  # the environment tells, before any rank waits for another
            _check_number(ranks, launched)
        mpi = import_mpi(hint)
        comm = mpi.COMM_WORLD
        if launched is not None and launched > 1 and comm.size == 1:
            launcher = next(name for name, variable in LAUNCHERS.items() if variable in os.environ)
            raise UsageError(
                f"{launcher} started {launched} ranks, but mpi4py here uses {mpi_name(mpi)}, so each rank is alone: "
                "start them with that MPI's mpirun"
            )
        _check_number(ranks, comm.size)
        if comm.size == 1:
            return cls(None)
        end_all_on_an_exception(comm)
        return cls(comm.Dup())

    @classmethod
    def joined(cls) -> Self | None:
        """The ranks whose MPI this process has started already; None: it is alone."""
        mpi: Any = sys.modules.get("mpi4py.MPI")
        if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.size == 1:
            return None
        return cls(mpi.COMM_WORLD)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        return value if self.comm is None else self.comm.bcast(value)

    def gather_all(self, value: T) -> list[T]:
        """Every rank's value, on all ranks."""
        return [value] if self.comm is None else self.comm.allgather(value)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.comm is not None:
            self.comm.Barrier()

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` on all ranks. A failure on any of them is raised on all, so that none waits for one that is gone.

        An exception that is not of this package is raised as RunError.
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
        """End all ranks now: the others may wait for this one in a collective. What was printed is passed on first."""
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
    """mpi4py's module MPI, initialised. hint: what to install. Raises UsageError where MPI is missing."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"{no_mpi(hint)} ({error})") from None
    return MPI


def mpi_name(mpi: Any) -> str:
    """The library behind mpi4py, such as `MPICH 5.0.2`."""
    name, version = mpi.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def end_all_on_an_exception(comm: MPI.Intracomm) -> None:
    """Have an exception that ends this process end all ranks of `comm`: they may wait for it in a collective."""
    report = sys.excepthook

    def end_all(*error: Any) -> None:
        report(*error)
        World(comm).abort()

    sys.excepthook = end_all
