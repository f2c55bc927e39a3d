"""Which slot a sequence gets, and what it finds there."""

from __future__ import annotations

from array import array

import pytest

from trtllm_pt.backends.tensorrt.slots import Slots

A, B = array("q", range(40)), array("q", range(100, 140))


def test_empty_slots_in_order_and_then_the_one_released_first() -> None:
    slots = Slots(3)
    assert [slots.take(A, 39) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert slots.free == 0
    for slot in (1, 2, 0):
        slots.release(slot, B)
    assert slots.take(A, 39) == (1, 0)
    assert [slots.held(slot) for slot in range(3)] == [40, 0, 40]


@pytest.mark.parametrize(
    ("held", "reusable", "expected"),
    [
        (A[:30], 39, (1, 30)),
        (A, 39, (1, 39)),  # at least one token is computed
        (A[:20] + B[:10], 39, (1, 20)),
        (A + B, 39, (1, 39)),
        (A[:16], 39, (1, 16)),
        (A[:15], 39, (0, 0)),  # too few to be worth it
        (A, 0, (0, 0)),  # nothing may be reused
        (B, 39, (0, 0)),
    ],
)
def test_a_prefix_is_found(held: array[int], reusable: int, expected: tuple[int, int]) -> None:
    slots = Slots(2)
    for _ in range(2):
        slots.take(B, 0)
    slots.release(1, held)
    slots.release(0, array("q"))
    assert slots.take(A, reusable) == expected


def test_the_longest_prefix_wins() -> None:
    slots = Slots(3)
    for _ in range(3):
        slots.take(B, 0)
    for slot, count in enumerate((20, 30, 25)):
        slots.release(slot, A[:count])
    assert slots.take(A, 39) == (1, 30)
    assert slots.take(A, 39) == (2, 25)


def test_a_prefix_is_found_only_with_the_same_salt() -> None:
    slots = Slots(2)
    slots.take(A, 39, b"mine")
    slots.release(0, A)
    assert slots.take(A, 39) == (1, 0)
    assert slots.take(A, 39, b"mine") == (0, 39)


def test_a_slot_is_released_once() -> None:
    slots = Slots(1)
    slots.take(A, 0)
    slots.release(0, A)
    with pytest.raises(AssertionError, match="slot 0 was released twice"):
        slots.release(0, A)
