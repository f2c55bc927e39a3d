"""The message of a step: what one rank writes, and what another and the GPU read."""

from __future__ import annotations

from array import array

import torch

from trtllm_pt.backends.tensorrt.profiles import DECODE, PREFILL
from trtllm_pt.backends.tensorrt.slot_plan import INPUTS, SlotPlan, StepMessage


def numbers(message: StepMessage) -> dict[str, list[int]]:
    """What the GPU reads of a message, by input."""
    layout = message.layout
    shapes = [torch.Size(shape).numel() for shape in layout.shapes().values()]
    parts = zip(INPUTS, layout.offsets, shapes, strict=True)
    return {name: message.tensor[first : first + count].tolist() for name, first, count in parts}


def ints(*values: int) -> array[int]:
    return array("i", values)


def new() -> StepMessage:
    return StepMessage(torch.zeros(StepMessage.room_for(4, 100, 64), dtype=torch.int32))


CHUNK = SlotPlan(PREFILL, 2, ints(*range(90)), ints(7), ints(97), ints(3, 89), 1)
# Slot 1 holds 6 tokens and does not take part.
STEP = SlotPlan(DECODE, 0, ints(11, 0, 13, 14), ints(5, 6, 0, 9), ints(6, 1, 1, 10), ints(0, 2, 3, 0), 3)


def test_what_the_network_reads() -> None:
    message = new()
    message.write(CHUNK)
    assert numbers(message) == {
        "tokens": list(range(90)),
        "positions": list(range(7, 97)),
        "starts": [7],
        "lengths": [97],
        "last": [3, 89],
    }
    message.write(STEP)
    assert numbers(message) == {
        "tokens": [11, 0, 13, 14],
        "positions": [5, 0, 0, 9],
        "starts": [5, 6, 0, 9],
        "lengths": [6, 1, 1, 10],
        "last": [0, 2, 3, 0],
    }


def test_another_rank_reads_the_same() -> None:
    ours, theirs = new(), new()
    for plan in (CHUNK, STEP, CHUNK, STEP, STEP):
        ours.write(plan)
        assert ours.numbers[0] == len(ours.numbers) > 0
        theirs.room[: len(ours.numbers)] = ours.numbers
        theirs.read()
        assert theirs.layout == ours.layout and numbers(theirs) == numbers(ours)


def test_the_same_plan_again_has_its_new_tokens() -> None:
    message = new()
    message.write(STEP)
    plan = STEP._replace(tokens=ints(*STEP.tokens), starts=ints(*STEP.starts), lengths=ints(*STEP.lengths))
    message.write(plan)
    plan.tokens[2], plan.starts[2], plan.lengths[2] = 23, 1, 2
    message.write(plan)
    assert numbers(message) == {
        "tokens": [11, 0, 23, 14],
        "positions": [5, 0, 1, 9],
        "starts": [5, 6, 1, 9],
        "lengths": [6, 1, 2, 10],
        "last": [0, 2, 3, 0],
    }


def test_every_input_is_aligned() -> None:
    message = new()
    for plan in (CHUNK, STEP):
        message.write(plan)
        assert not any(4 * offset % 256 for offset in message.layout.offsets)


def test_there_is_room_for_every_step() -> None:
    for slots, tokens, rows in ((1, 1, 1), (16, 2048, 64), (4096, 1, 1), (3, 65, 64)):
        message = StepMessage(torch.zeros(StepMessage.room_for(slots, tokens, rows), dtype=torch.int32))
        zeros = [array("i", bytes(4 * count)) for count in (slots, tokens, rows)]
        message.write(SlotPlan(DECODE, 0, zeros[0], zeros[0], zeros[0], zeros[0], 0))
        message.write(SlotPlan(PREFILL, 0, zeros[1], ints(0), ints(tokens), zeros[2], 0))
        assert message.layout.size <= len(message.tensor)
