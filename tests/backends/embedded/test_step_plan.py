"""The plan as one message."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch

from tests.backends.embedded.fake import new_messages, received
from trtllm_pt.backends.embedded.step_plan import StepMessage, StepPlan


def numbers(*of: int) -> array[int]:
    return array("q", of)


PLAN = StepPlan(
    tokens=numbers(9, 1, 2, 3),
    starts=numbers(16, 0),
    offsets=[0, 1, 4],
    last=[0, 3],
    pages=[[5, 3], [2]],
    scored=[1, 2],
    targets=[2, 3],
    top=5,
    whole=True,
)


def test_there_and_back() -> None:
    assert received(PLAN) == PLAN._replace(pages=[[5, 3], [2, 0]])  # a row for each, as long as the longest


def test_the_message_is_what_its_first_number_says() -> None:
    message = StepMessage(2, 8, 48)
    message.write(PLAN)
    assert message.numbers.tolist() == [
        27,
        4,
        2,
        2,
        2,
        5,
        1,
        2,
        9,
        1,
        2,
        3,
        16,
        0,
        0,
        1,
        4,
        0,
        3,
        1,
        2,
        2,
        3,
        5,
        3,
        2,
        0,
    ]
    assert message.numbers.nbytes == 27 * 8


def test_inputs_are_the_message_itself() -> None:
    """Written again, with the same sizes or others: nothing of the plan before is left."""
    message = StepMessage(2, 8, 48)
    for plan in (PLAN, PLAN._replace(tokens=numbers(8, 7, 6, 5), pages=[[1], [4, 6]]), PLAN._replace(last=[3]), PLAN):
        message.write(plan)
        tokens, starts, offsets, pages, rows = message.inputs
        last, scored = rows[: message.last], rows[message.last :]
        assert message.targets is not None
        assert (scored.tolist(), message.targets.tolist(), message.top) == (plan.scored, plan.targets, plan.top)
        assert all(tensor.dtype == torch.int64 and tensor.is_contiguous() for tensor in message.inputs)
        assert [t.tolist() for t in (tokens, starts, offsets, last)] == list(map(list, plan[:4]))
        assert [row[: len(own)] for row, own in zip(pages.tolist(), plan.pages, strict=True)] == plan.pages
        assert sum(map(sum, pages.tolist())) == sum(map(sum, plan.pages))


def test_without_rows_to_score() -> None:
    message = StepMessage(2, 8, 48)
    for plan in (PLAN, PLAN._replace(scored=[], targets=[], top=0), PLAN):
        message.write(plan)
        assert (message.targets is None) == (not plan.scored)
        assert message.inputs[-1].tolist() == [*plan.last, *plan.scored]


def test_a_plan_may_come_again_with_other_tokens() -> None:
    plan = PLAN._replace(
        tokens=numbers(9, 1), starts=numbers(16, 0), offsets=[0, 1, 2], last=[0, 1], scored=[], targets=[], top=0
    )
    messages = new_messages()
    for step in range(3):
        plan.tokens[0], plan.starts[1] = 10 + step, step
        assert received(plan, messages) == received(plan)


def test_arrays_are_as_good_as_lists() -> None:
    arrays = StepPlan(*map(np.array, PLAN[:4]), [np.array(row) for row in PLAN.pages], *PLAN[5:])  # type: ignore[arg-type]
    assert received(arrays) == received(PLAN)


def test_the_largest_plan_has_room() -> None:
    batch, tokens, length = 3, 8, 40
    pages = np.arange(9).reshape(3, 3).tolist()
    every = list(range(tokens))
    plan = StepPlan(numbers(*every), numbers(39, 39, 34), [0, 1, 2, 8], [0, 1, 7], pages, every, every, 20)
    message = StepMessage(batch, tokens, length)
    message.write(plan)
    assert len(message.numbers) == len(message.room)
    with pytest.raises(ValueError):
        message.write(plan._replace(tokens=numbers(*plan.tokens, 8)))
