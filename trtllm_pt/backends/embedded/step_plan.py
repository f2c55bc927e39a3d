"""What rank 0 tells the other ranks about a step: lists on rank 0, then one message, which all ranks' engines read.

T tokens in the step, B sequences, R rows of logits wanted, M pages of the sequence that has most.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.kv_pages import pages_for

# Size of the whole message, T, B, R, M. A message never has size 0, so a session may give 0 its own meaning.
HEADER = 5


class StepPlan(NamedTuple):
    """One forward."""

    tokens: array[int]  # int64 [T], sequence after sequence
    starts: array[int]  # int64 [B] position of a sequence's first token in this step
    offsets: Sequence[int]  # [B + 1] where its tokens lie in `tokens`
    last: Sequence[int]  # [R] indices into `tokens` whose logits are wanted; R is at least 1, for a graph needs a row
    pages: Sequence[Sequence[int]]  # [B] its pages in order, as many as the step reads or writes


class StepMessage:
    """The place of one rank's step plans, one after the other: the engine's inputs lie in the message itself.

    Python that was thrown out of the caches costs microseconds a call, and a step's weights throw out everything: so
    while the sizes of a step stay, as they mostly do when all decode, its tensors stay, and of a plan that comes again
    only tokens and starts are written.
    """

    def __init__(self, max_batch_size: int, max_num_tokens: int, max_seq_len: int) -> None:
        room = HEADER + max_num_tokens + max_batch_size * (3 + pages_for(max_seq_len)) + 1
        numbers = array("q", bytes(8 * room))
        self.room = memoryview(numbers)  # int64, for the longest message under these limits
        self._tensor = torch.frombuffer(numbers, dtype=torch.int64)
        self._sizes: list[int] = []
        self._plan: StepPlan | None = None  # the last
        # Of the engine, int64: tokens [T], starts [B], offsets [B + 1], pages [B, M], last [R].
        self.inputs: tuple[Tensor, ...] = ()

    def write(self, plan: StepPlan) -> None:
        """The plan as header, tokens, starts, offsets, last, and pages [B, M], unused entries 0."""
        if plan is self._plan:
            new, sequences = len(plan.tokens), len(plan.starts)
            self.room[HEADER : HEADER + new] = plan.tokens
            self.room[HEADER + new : HEADER + new + sequences] = plan.starts
            return
        self._plan = plan
        most = max(map(len, plan.pages))
        numbers = array("q", (0, len(plan.tokens), len(plan.starts), len(plan.last), most))
        for part in (plan.tokens, plan.starts, plan.offsets, plan.last):
            numbers.extend(part)
        for pages in plan.pages:
            numbers.extend(pages)
            numbers.extend(repeat(0, most - len(pages)))
        numbers[0] = len(numbers)
        self.room[: len(numbers)] = numbers
        self.read()

    @property
    def numbers(self) -> memoryview:
        """The message: as many int64s as its first says."""
        return self.room[: self.room[0]]

    def read(self) -> None:
        """Set `inputs` for the message that the room holds now."""
        sizes = self.room[:HEADER].tolist()
        if sizes != self._sizes:
            self._sizes = sizes
            size, tokens, sequences, rows, most = sizes
            split = (HEADER, tokens, sequences, sequences + 1, rows, sequences * most)
            _, new, starts, offsets, last, pages = self._tensor[:size].split_with_sizes(split)
            self.inputs = (new, starts, offsets, pages.view(sequences, most), last)
