"""The plan of a step, which is at the same time the message to all ranks and what the GPU reads.

Shapes: B slots, S tokens of each, R rows of logits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

HEADER = 6  # the message begins with its size, which is never 0, and the profile, the first slot, B, S and R
_ALIGNED = 64  # int32 numbers: TensorRT wants the address of an input to be a multiple of 256 bytes
# The network's inputs, in the order of the message: [B, S], [B, S], [B], [B] and [R]; see network.Step.
INPUTS = ("tokens", "positions", "starts", "lengths", "last")


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


class SlotPlan(NamedTuple):
    """A step on B neighbouring slots: one token of each, or S tokens of one.

    A decode step computes all slots up to the last one that decodes. A slot in between that does not take part writes
    behind the tokens that it holds, where the next token overwrites it, and reads its first position only.
    """

    layout: Layout
    numbers: array[int]  # int32: the message
    wanted: int  # the number of rows, the first ones, whose logits are for sampling
    targets: Sequence[int] = ()  # the tokens that follow the next rows, whose log-probs are computed
    top: int = 0  # how many of the likeliest tokens to return beside each of these log-probs

    @classmethod
    def of(
        cls, layout: Layout, inputs: Sequence[Iterable[int]], wanted: int, targets: Sequence[int] = (), top: int = 0
    ) -> SlotPlan:
        """Return a plan with the values of INPUTS."""
        numbers = array("i", bytes(4 * layout.size))
        numbers[:HEADER] = array("i", (layout.size, *layout[:5]))
        for offset, values in zip(layout.offsets, inputs, strict=True):
            given = array("i", values)
            numbers[offset : offset + len(given)] = given
        return cls(layout, numbers, wanted, targets, top)

    def decode(self, slot: int, token: int, position: int) -> None:
        """Set the token of a slot in a decode step, at a position of its sequence."""
        numbers, (tokens, positions, starts, lengths, _) = self.numbers, self.layout.offsets
        numbers[tokens + slot] = token
        numbers[positions + slot] = numbers[starts + slot] = position
        numbers[lengths + slot] = position + 1


class StepMessage:
    """The buffer of one rank for the messages with step plans.

    tensor: int32, in memory that the GPU can copy from, with room for `room_for` numbers.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.room: memoryview = tensor.numpy().data
        self.layout = Layout.of(0, 0, 1, 1, 1)

    @staticmethod
    def room_for(slots: int, tokens: int, rows: int) -> int:
        """Return the numbers of the largest message: a decode step, or a chunk of so many tokens."""
        return max(Layout.of(0, 0, slots, 1, slots).size, Layout.of(1, 0, 1, tokens, rows).size)

    def write(self, plan: SlotPlan) -> None:
        self.layout = plan.layout
        self.room[: plan.layout.size] = plan.numbers

    def read(self) -> None:
        """Set `layout` for the message that is now in the buffer."""
        header = self.room[1:HEADER].tolist()
        if header != list(self.layout[:5]):
            self.layout = Layout.of(*header)

    @property
    def numbers(self) -> memoryview:
        """The numbers of the message."""
        return self.room[: self.layout.size]
