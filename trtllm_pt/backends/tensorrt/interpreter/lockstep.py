"""Execute the networks of all ranks in one process, in lock-step from collective to collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trtllm_pt.backends.tensorrt.interpreter.execute import Meeting, execute
from trtllm_pt.backends.tensorrt.interpreter.program import Program


def execute_ranks(programs: Sequence[Program], inputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return every rank's outputs. Raises AssertionError if the ranks do not reach the same collectives in order."""
    executions = [execute(*pair) for pair in zip(programs, inputs, strict=True)]
    meetings: list[Meeting] = []
    finished: list[dict[str, Tensor]] = []
    results: Sequence[Tensor | None] = [None] * len(programs)
    while not finished:
        meetings = []
        for execution, result in zip(executions, results, strict=True):
            try:
                meetings.append(execution.send(result))  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                finished.append(end.value)
        assert not finished or not meetings, "some ranks have fewer collectives than others"
        if meetings:
            results = [meet(meetings)] * len(programs)
    return finished


def meet(meetings: Sequence[Meeting]) -> Tensor:
    """Return the result of a collective, the same for all ranks."""
    kinds = {(meeting.collective, meeting.op, meeting.ranks) for meeting in meetings}
    assert len(kinds) == 1, f"the ranks meet for different things: {sorted(kinds)}"
    ((collective, op, ranks),) = kinds
    assert ranks == len(meetings), f"{len(meetings)} ranks meet, but the layer is for {ranks}"
    values = [meeting.value for meeting in meetings]
    if collective == "ALL_GATHER":
        return torch.cat(values)
    stacked = torch.stack(values)
    wide = stacked.double() if stacked.dtype == torch.float32 else stacked.float()
    return (wide.mean(0) if op == "AVG" else wide.sum(0)).to(stacked.dtype)
