"""The plan as one message."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trtllm_pt.runtime.step_plan import StepPlan


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


PLAN = StepPlan(
    tokens=array(9, 1, 2, 3),
    starts=array(16, 0),
    offsets=array(0, 1, 4),
    pages=np.array([[5, 3, 0], [2, 0, 0]], np.int64),
    last=array(0, 3),
)


def same(a: StepPlan, b: StepPlan) -> bool:
    fields = [f.name for f in dataclasses.fields(StepPlan)]
    return all(getattr(b, f).dtype == np.int64 and np.array_equal(getattr(a, f), getattr(b, f)) for f in fields)


def test_there_and_back() -> None:
    buffer = PLAN.to_buffer()
    assert buffer.dtype == np.int64 and buffer[0] == len(buffer) == 5 + 4 + 2 + 3 + 2 + 3
    assert same(PLAN, StepPlan.from_buffer(buffer))


def test_into_a_long_buffer_that_is_used_again() -> None:
    out = np.full(StepPlan.max_size(2, 8, 48), -1, np.int64)
    message = PLAN.to_buffer()
    assert message[0] == len(message) <= len(out)
    out[: len(message)] = message
    plan = StepPlan.from_buffer(out)
    out[:] = 77
    assert same(PLAN, plan)


def test_the_largest_plan_has_the_maximal_size() -> None:
    batch, tokens, length = 3, 8, 40
    plan = StepPlan(
        tokens=np.arange(tokens),
        starts=array(39, 39, 34),
        offsets=array(0, 1, 2, 8),
        pages=np.arange(9).reshape(3, 3),
        last=array(0, 1, 7),
    )
    assert len(plan.to_buffer()) == StepPlan.max_size(batch, tokens, length)
    assert same(plan, StepPlan.from_buffer(plan.to_buffer()))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.tokens = array(1)  # type: ignore[misc]
