"""All ranks of a job in one process: each runs until it meets the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.rank import Meeting, Step
from tests.backends.tensorrt_llm.checkout.execute.values import ExecutionError


def in_lockstep(steps: Sequence[Step]) -> list[dict[str, Tensor]]:
    """The outputs of every rank. Raises ExecutionError where ranks wait for each other in vain."""
    outputs: dict[int, dict[str, Tensor]] = {}
    waiting: dict[int, Meeting] = {}

    def go_on(rank: int, result: Tensor | None) -> None:
        try:
            waiting[rank] = steps[rank].send(result)
        except StopIteration as end:
            waiting.pop(rank, None)
            outputs[rank] = end.value

    for rank in range(len(steps)):
        go_on(rank, None)
    while waiting:
        group = _ready(waiting)
        result = _collective([waiting[rank] for rank in group])
        for rank in group:
            go_on(rank, result)
    return [outputs[rank] for rank in range(len(steps))]


def _ready(waiting: dict[int, Meeting]) -> tuple[int, ...]:
    """A group of which every rank is at the same collective."""
    for rank, meeting in waiting.items():
        if rank not in meeting.group:
            raise ExecutionError(f"rank {rank} calls {meeting.kind} on group {meeting.group}, of which it is not")
        if all(other in waiting and waiting[other][:2] == meeting[:2] for other in meeting.group):
            return meeting.group
    where = "; ".join(f"rank {rank} at {meeting.kind} {meeting.group}" for rank, meeting in sorted(waiting.items()))
    raise ExecutionError(f"the ranks wait for each other: {where}")


def _collective(meetings: list[Meeting]) -> Tensor:
    operands = [meeting.operand for meeting in meetings]
    if len({operand.shape for operand in operands}) > 1:
        shapes = [list(operand.shape) for operand in operands]
        raise ExecutionError(f"the ranks bring {shapes} to {meetings[0].kind}")
    return torch.cat(operands) if meetings[0].kind == "AllGather" else torch.stack(operands).sum(0)
