"""The messages between the embedded engine's ranks that are not all-reduces: two hops a step.

The all-reduces run inside the graph, on the communicator that `bind` gives them.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trtllm_pt.job.world import World

if TYPE_CHECKING:
    from mpi4py import MPI

_STOP = memoryview(array("q", [0]))  # a plan's first number is its length, never 0


class RankMessages(World):
    """The ranks of an engine. `hops`: messages between ranks that this one waited for or sent, two in every step."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        super().__init__(comm)
        self.hops = 0

    def twin(self) -> RankMessages:
        """The same ranks, on a communicator of its own: its messages cannot be taken for these."""
        return RankMessages(None if self.comm is None else self.comm.Dup())

    def bind(self) -> None:
        """Give the graph's all-reduces this communicator. The op library must be loaded."""
        if self.comm is not None:
            torch.ops.trtllm_pt.set_communicator(self.comm.py2f())

    def send_plan(self, numbers: memoryview | None) -> None:
        """On rank 0: send a step's plan to all other ranks; None: they are to stop."""
        if self.comm is None:
            return
        requests = [self.comm.Isend(_STOP if numbers is None else numbers, dest) for dest in range(1, self.size)]
        for request in requests:
            request.Wait()
        self.hops += 1

    @property
    def has_message(self) -> bool:
        """On a rank other than 0: whether a message of rank 0 has arrived."""
        assert self.comm is not None
        arrived: bool = self.comm.Iprobe(0)
        return arrived

    def receive_plan(self, room: memoryview) -> bool:
        """On the other ranks: the next plan of rank 0, into `room`, which takes the longest. Returns False to stop."""
        assert self.comm is not None
        self.comm.Recv(room, 0)
        return bool(room[0])

    def gather_logits(self, logits: Tensor) -> Tensor | None:
        """This rank's float32 [R, V / ranks] -> on rank 0 all logits [R, V], elsewhere None."""
        if self.comm is None:
            return logits
        self.hops += 1
        if self.rank:
            self.comm.Gather(logits.numpy(), None, 0)
            return None
        parts = torch.empty(self.size, *logits.shape)
        self.comm.Gather(logits.numpy(), parts.numpy(), 0)
        return parts.transpose(0, 1).flatten(1)
