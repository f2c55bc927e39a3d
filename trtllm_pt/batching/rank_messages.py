"""The messages with which rank 0 leads the other ranks of an engine: the plan of each step."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from trtllm_pt.job.world import World

if TYPE_CHECKING:
    from mpi4py import MPI
    from typing_extensions import Self


class RankMessages(World):
    """The ranks of an engine. `hops` counts the messages that this rank sent or waited for.

    A message consists of numbers of one type. The first is the length of the message, or 0 to stop.
    """

    typecode = "q"  # of the numbers, as in the module array

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        super().__init__(comm)
        self.hops = 0
        self._stop = memoryview(array(self.typecode, [0]))

    def twin(self) -> Self:
        """Return the same ranks with a communicator of their own, so that messages of the two cannot be confused."""
        return type(self)(None if self.comm is None else self.comm.Dup())

    def send_plan(self, numbers: memoryview | None) -> None:
        """On rank 0, send the plan of a step to all other ranks, or None to make them stop."""
        if self.comm is None:
            return
        requests = [self.comm.Isend(self._stop if numbers is None else numbers, dest) for dest in range(1, self.size)]
        for request in requests:
            request.Wait()
        self.hops += 1

    @property
    def has_message(self) -> bool:
        """On a rank other than 0, whether a message of rank 0 has arrived."""
        assert self.comm is not None
        arrived: bool = self.comm.Iprobe(0)
        return arrived

    def receive_plan(self, room: memoryview) -> bool:
        """On a rank other than 0, receive the next plan into `room`, which must be large enough for any plan.

        Returns False if rank 0 asks this rank to stop.
        """
        assert self.comm is not None
        self.comm.Recv(room, 0)
        return bool(room[0])
