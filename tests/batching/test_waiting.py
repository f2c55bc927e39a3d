"""The queue of waiting requests: its order, and that no operation looks at all of them."""

from __future__ import annotations

import random

from trtllm_pt.batching.waiting import Waiting
from trtllm_pt.requests.messages import Request, SamplingParams
from trtllm_pt.requests.sequence import Sequence


def sequence(place: tuple[int, int]) -> Sequence:
    found = Sequence.start(Request(id=place[1], token_ids=(1,), sampling=SamplingParams()), 2, -1)
    found.place = place
    return found


def test_the_order_is_that_of_places_whatever_was_removed() -> None:
    draw, waiting, expected = random.Random(0), Waiting(), dict[tuple[int, int], Sequence]()
    for arrival in range(2000):
        each = sequence((draw.randrange(3), arrival))
        waiting.add(each)
        expected[each.place] = each
        if arrival % 3 == 1:
            removed = expected.pop(draw.choice(list(expected)))
            waiting.remove(removed)
        if arrival % 5 == 4:
            assert waiting.take_first() is expected.pop(min(expected))
    assert len(waiting) == len(expected) and bool(waiting)
    assert list(waiting) == [expected[place] for place in sorted(expected)]
    taken = [waiting.take_first() for _ in range(len(waiting))]
    assert taken == [expected[place] for place in sorted(expected)] and not waiting


def test_a_sequence_that_was_taken_can_come_back_to_its_place() -> None:
    waiting, places = Waiting(), [(0, 1), (0, 2), (0, 3)]
    for place in places:
        waiting.add(sequence(place))
    first = waiting.take_first()
    waiting.add(first)
    assert waiting.first is first and [each.place for each in waiting] == places


class Counted(tuple[int, int]):
    """A place that counts how often places are compared, or looked for."""

    looks = 0

    def __lt__(self, other: object) -> bool:
        Counted.looks += 1
        return tuple.__lt__(self, other)  # type: ignore[operator]

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return tuple.__eq__(self, other)

    def __hash__(self) -> int:
        Counted.looks += 1
        return tuple.__hash__(self)


def looks(count: int) -> float:
    """Comparisons and look-ups per request of a queue of which every second one is cancelled."""
    waiting, all_of_them = Waiting(), [sequence(Counted((number % 3, number))) for number in range(count)]
    Counted.looks = 0
    for each in all_of_them:
        waiting.add(each)
    cancelled = all_of_them[::2]
    random.Random(0).shuffle(cancelled)
    for each in cancelled:
        waiting.remove(each)
    while waiting:
        waiting.take_first()
    return Counted.looks / count


def test_the_work_per_request_hardly_grows_with_the_queue() -> None:
    few, many = looks(300), looks(9600)
    assert few > 1 and many < few + 5 * 5  # 32 times as many requests: five more levels of the heap
