"""The messages between the embedded engine's ranks other than all-reduces: the step plan and the logits.

The all-reduces run inside the graph, on the communicator that `bind` sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trtllm_pt.batching.rank_messages import RankMessages


class LogitsMessages(RankMessages):
    """The ranks of an embedded engine. `hops` counts two messages in each step."""

    def bind(self) -> None:
        """Set the communicator of the graph's all-reduces to this one. The op library must be loaded."""
        if self.comm is not None:
            torch.ops.trtllm_pt.set_communicator(self.comm.py2f())

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
