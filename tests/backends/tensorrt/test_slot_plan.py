"""The message of a step: what one rank writes, and what another and the GPU read."""

from __future__ import annotations

import torch

from trtllm_pt.backends.tensorrt.profiles import DECODE, PREFILL
from trtllm_pt.backends.tensorrt.slot_plan import INPUTS, Layout, SlotPlan, StepMessage


def numbers(message: StepMessage) -> dict[str, list[int]]:
    """What the GPU reads of a message, by input."""
    layout = message.layout
    shapes = [torch.Size(shape).numel() for shape in layout.shapes().values()]
    parts = zip(INPUTS, layout.offsets, shapes, strict=True)
    return {name: message.tensor[first : first + count].tolist() for name, first, count in parts}


def new() -> StepMessage:
    return StepMessage(torch.zeros(StepMessage.room_for(4, 100, 64), dtype=torch.int32))


CHUNK = SlotPlan.of(Layout.of(PREFILL, 2, 1, 90, 2), (range(90), range(7, 97), [7], [97], [3, 89]), 1)


def decode_step() -> SlotPlan:
    """Slot 1 holds 6 tokens and does not take part."""
    zeros = [0] * 4
    plan = SlotPlan.of(Layout.of(DECODE, 0, 4, 1, 4), (zeros, zeros, [0, 6, 0, 0], [1] * 4, [0, 2, 3, 0]), 3)
    for slot, token, position in ((0, 11, 5), (2, 13, 0), (3, 14, 9)):
        plan.decode(slot, token, position)
    return plan


STEP = decode_step()


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
    message, plan = new(), decode_step()
    message.write(plan)
    plan.decode(2, 23, 1)
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
        for layout in (Layout.of(DECODE, 0, slots, 1, slots), Layout.of(PREFILL, 0, 1, tokens, rows)):
            message.write(SlotPlan.of(layout, ([], [], [], [], []), 0))
            assert len(message.numbers) == layout.size
