"""The processes that train one model, and the all-reduce between them with its gradient.

Each process, or rank, computes its share of the model on the whole batch, and adds its share of the loss: that of its
part of the tokens. The loss is the sum over the ranks. So the gradient of an all-reduce is again an all-reduce: a term
of the sum reaches every rank's result, and its gradient is the sum of what they all did with it. And the gradient of a
weight that all ranks hold alike is the sum of their gradients. These two sums are all that training adds to the
messages of a forward pass, for every schedule.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process among those that `torchrun` started, or alone."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, with its gradient."""
        if self.size == 1:
            return x
        total: Tensor = _AllReduce.apply(x)  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def sum_(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, with one all-reduce."""
        if self.size == 1:
            return
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))

    def wait_for_all(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
