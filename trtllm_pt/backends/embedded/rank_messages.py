"""The messages between the embedded engine's ranks other than all-reduces: the step plan and the logits.

The all-reduces run inside the graph, on the communicator that `bind` sets.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trtllm_pt.job.world import World

if TYPE_CHECKING:
    from mpi4py import MPI

_STOP = memoryview(array("q", [0]))  # the first number of a plan is its length, which is never 0


class RankMessages(World):
    """The ranks of an engine. `hops` counts the messages that this rank sent or waited for, two in each step."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        super().__init__(comm)
        self.hops = 0

    def twin(self) -> RankMessages:
        """Return the same ranks with a communicator of their own, so that messages of the two cannot be confused."""
        return RankMessages(None if self.comm is None else self.comm.Dup())

    def bind(self) -> None:
        """Set the communicator of the graph's all-reduces to this one. The op library must be loaded."""
        if self.comm is not None:
            torch.ops.trtllm_pt.set_communicator(self.comm.py2f())

    def send_plan(self, numbers: memoryview | None) -> None:
        """On rank 0, send the plan of a step to all other ranks, or None to make them stop."""
        if self.comm is None:
            return
        requests = [self.comm.Isend(_STOP if numbers is None else numbers, dest) for dest in range(1, self.size)]
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

    def gather_logits(self, logits: Tensor) -> Tensor | None:
        """Gather the ranks' logits, float32 [R, padded V / ranks]. Rank 0 gets [R, padded V], the other ranks None."""
        if self.comm is None:
            return logits
        parts = self.gather(logits)
        return None if parts is None else parts.transpose(0, 1).flatten(1)

    def gather(self, part: Tensor) -> Tensor | None:
        """Gather a float32 tensor of the same shape from every rank. Rank 0 gets [ranks, *shape], other ranks None."""
        if self.comm is None:
            return part[None]
        self.hops += 1
        if self.rank:
            self.comm.Gather(part.numpy(), None, 0)
            return None
        parts = torch.empty(self.size, *part.shape)
        self.comm.Gather(part.numpy(), parts.numpy(), 0)
        return parts
