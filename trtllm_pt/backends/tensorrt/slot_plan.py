"""The plan of a step: arrays on rank 0, and one message to all ranks, which is also what the GPU reads.

Shapes: B slots, S tokens of each, R rows of logits.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

HEADER = 6  # the message begins with its size, which is never 0, and the profile, the first slot, B, S and R
_ALIGNED = 64  # int32 numbers: TensorRT wants the address of an input to be a multiple of 256 bytes
INPUTS = ("tokens", "positions", "starts", "lengths", "last")  # of the network, in the order of the message


class SlotPlan(NamedTuple):
    """A step on B neighbouring slots: one token of each, or S tokens of one.

    A decode step computes all slots up to the last one that decodes. A slot in between that does not take part writes
    behind the tokens that it holds, where the next token overwrites it, and reads its first position only.
    """

    profile: int
    slot: int  # the first one
    tokens: array[int]  # int32 [B * S]
    starts: array[int]  # int32 [B]: where each slot's tokens are written
    lengths: array[int]  # int32 [B]: tokens that each slot's attention reads, of which these are the last S
    last: array[int]  # int32 [R]: indices into `tokens` whose logits to compute
    wanted: int  # the number of rows, the first ones, whose logits are for sampling
    targets: Sequence[int] = ()  # the tokens that follow the next rows, whose log-probs are computed
    top: int = 0  # how many of the likeliest tokens to return beside each of these log-probs


class Layout(NamedTuple):
    """The sizes of a step, and where the inputs lie in the message."""

    profile: int
    slot: int
    slots: int  # B
    each: int  # S
    rows: int  # R
    offsets: tuple[int, ...]  # of each of INPUTS
    size: int

    @classmethod
    def of(cls, profile: int, slot: int, slots: int, each: int, rows: int) -> Layout:
        offsets, end = [], _ALIGNED
        for count in (slots * each, slots * each, slots, slots, rows):
            offsets.append(end)
            end += -(-count // _ALIGNED) * _ALIGNED
        return cls(profile, slot, slots, each, rows, tuple(offsets), end)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of INPUTS."""
        both = (self.slots, self.each)
        return dict(zip(INPUTS, (both, both, (self.slots,), (self.slots,), (self.rows,)), strict=True))


class StepMessage:
    """The buffer of one rank for the messages with step plans.

    numbers: int32, in memory that the GPU can copy from, with room for `room_for` numbers.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.tensor = numbers
        self._array = numbers.numpy()
        self.room: memoryview = self._array.data
        self.layout = Layout.of(0, 0, 1, 1, 1)
        self._header: list[int] = []
        self._plan: SlotPlan | None = None  # the last plan that was written

    @staticmethod
    def room_for(slots: int, tokens: int, rows: int) -> int:
        """Return the numbers of the largest message: a decode step, or a chunk of so many tokens."""
        return max(Layout.of(0, 0, slots, 1, slots).size, Layout.of(1, 0, 1, tokens, rows).size)

    def write(self, plan: SlotPlan) -> None:
        """Write a plan. If the same one comes again, only what differs from step to step is written."""
        if plan is not self._plan:
            self._plan = plan
            slots = len(plan.starts)
            layout = Layout.of(plan.profile, plan.slot, slots, len(plan.tokens) // slots, len(plan.last))
            header = array("i", (layout.size, plan.profile, plan.slot, slots, layout.each, layout.rows))
            self.room[:HEADER] = header
            self.read()
            self._put(4, plan.last)
        self._put(0, plan.tokens)
        self._put(2, plan.starts)
        self._put(3, plan.lengths)
        positions, lengths = self.layout.offsets[1], self.layout.offsets[3]
        slots, each = self.layout.slots, self.layout.each
        if each == 1:
            np.subtract(self._array[lengths : lengths + slots], 1, out=self._array[positions : positions + slots])
        else:
            end = plan.lengths[0]
            self._array[positions : positions + each] = np.arange(end - each, end)

    def read(self) -> None:
        """Set `layout` for the message that is now in the buffer."""
        header = self.room[:HEADER].tolist()
        if header != self._header:
            self._header = header
            self.layout = Layout.of(*header[1:])

    @property
    def numbers(self) -> memoryview:
        """The numbers of the message."""
        return self.room[: self.layout.size]

    def _put(self, which: int, values: array[int]) -> None:
        begin = self.layout.offsets[which]
        self.room[begin : begin + len(values)] = values
