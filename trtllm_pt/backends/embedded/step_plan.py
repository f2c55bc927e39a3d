"""The plan of a step: lists on rank 0, and one message to all ranks, which the engines read in place.

Shapes: T tokens in the step, B sequences, R rows of logits, S rows to score, M pages of the longest sequence.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.kv_pages import pages_for

# The message begins with its size and T, B, R, S, `top`, `whole` and M. Its size is never 0, which marks the message to
# stop.
HEADER = 8


class StepPlan(NamedTuple):
    """The plan of one forward pass."""

    tokens: array[int]  # int64 [T]: the tokens to compute, sequence after sequence
    starts: array[int]  # int64 [B]: position of each sequence's first token in this step
    offsets: Sequence[int]  # [B + 1]: where each sequence's tokens begin and end in `tokens`
    last: Sequence[int]  # [R]: indices into `tokens` whose logits to compute; R >= 1, because the graph needs a row
    pages: Sequence[Sequence[int]]  # [B]: the pages of each sequence that the step reads or writes, in order
    scored: Sequence[int] = ()  # [S]: indices into `tokens` of rows whose log-probs to compute
    targets: Sequence[int] = ()  # [S]: the tokens that follow those rows
    top: int = 0  # how many of the likeliest tokens to return for each scored row
    whole: bool = False  # whether to return the logits of the scored rows, too


class StepMessage:
    """The buffer of one rank for the messages with step plans. The engine's inputs are views of the buffer.

    A step's weights evict Python's data from the CPU caches, after which each call takes microseconds. So the views are
    kept while the sizes of a step stay the same, as they mostly do while all sequences decode, and if the same plan
    comes again, only its tokens and starts are written.
    """

    def __init__(self, max_batch_size: int, max_num_tokens: int, max_seq_len: int) -> None:
        room = HEADER + 3 * max_num_tokens + max_batch_size * (3 + pages_for(max_seq_len)) + 1
        numbers = array("q", bytes(8 * room))
        self.room = memoryview(numbers)  # int64, large enough for any message within the limits
        self._tensor = torch.frombuffer(numbers, dtype=torch.int64)
        self._sizes: list[int] = []
        self._plan: StepPlan | None = None  # the last plan that was written
        # The engine's inputs, int64: tokens [T], starts [B], offsets [B + 1], pages [B, M], rows [R + S].
        self.inputs: tuple[Tensor, ...] = ()
        self.targets: Tensor | None = None  # int64 [S], or None if no row is scored

    def write(self, plan: StepPlan) -> None:
        """Write a plan as header, tokens, starts, offsets, last, scored, targets, and pages [B, M] padded with 0."""
        if plan is self._plan:
            new, sequences = len(plan.tokens), len(plan.starts)
            self.room[HEADER : HEADER + new] = plan.tokens
            self.room[HEADER + new : HEADER + new + sequences] = plan.starts
            return
        self._plan = plan
        most = max(map(len, plan.pages))
        sizes = (len(plan.tokens), len(plan.starts), len(plan.last), len(plan.scored))
        numbers = array("q", (0, *sizes, plan.top, plan.whole, most))
        for part in (plan.tokens, plan.starts, plan.offsets, plan.last, plan.scored, plan.targets):
            numbers.extend(part)
        for pages in plan.pages:
            numbers.extend(pages)
            numbers.extend(repeat(0, most - len(pages)))
        numbers[0] = len(numbers)
        self.room[: len(numbers)] = numbers
        self.read()

    @property
    def last(self) -> int:
        """The number of rows of logits, which come before the scored ones."""
        return self._sizes[3]

    @property
    def top(self) -> int:
        """How many of the likeliest tokens to return for each scored row."""
        return self._sizes[5]

    @property
    def whole(self) -> bool:
        """Whether to return the logits of the scored rows."""
        return bool(self._sizes[6])

    @property
    def numbers(self) -> memoryview:
        """The int64 numbers of the message, whose length is the first number."""
        return self.room[: self.room[0]]

    def read(self) -> None:
        """Set `inputs` for the message that is now in the buffer."""
        sizes = self.room[:HEADER].tolist()
        if sizes != self._sizes:
            self._sizes = sizes
            size, tokens, sequences, last, scored, _, _, most = sizes
            split = (HEADER, tokens, sequences, sequences + 1, last + scored, scored, sequences * most)
            _, new, starts, offsets, rows, targets, pages = self._tensor[:size].split_with_sizes(split)
            self.inputs = (new, starts, offsets, pages.view(sequences, most), rows)
            self.targets = targets if scored else None
