"""The ranks' clocks, against a simulation that knows each rank and each message."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_pt.planner.clocks import KernelTime, Overlap, RankClocks

SECONDS = st.floats(0, 10)


def clocks(count: int, late: float, work: list[float], message: float, logits: float) -> tuple[float, float]:
    """The end, and how long rank 0 waited in all-reduces: `work` between the messages."""
    clock = RankClocks(count, late)
    for number, seconds in enumerate(work[:-1]):
        clock.work(KernelTime(seconds, seconds))
        clock.start(number, message)
        clock.finish(number)
    clock.work(KernelTime(work[-1], work[-1]))
    return clock.gather(logits), clock.waited


def simulated(count: int, late: float, work: list[float], message: float, logits: float) -> tuple[float, float]:
    """Every rank goes on when it has heard of each other one, which it does a message's time after that one spoke."""
    at, waited = [0.0] + [late] * (count - 1), 0.0
    for seconds in work[:-1]:
        spoke = [clock + seconds for clock in at]
        at = [max([own, *(other + message for j, other in enumerate(spoke) if j != i)]) for i, own in enumerate(spoke)]
        waited += at[0] - spoke[0]
    ends = [clock + work[-1] for clock in at]
    return max([ends[0], *(other + logits for other in ends[1:])]), waited


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([2, 3, 8]), SECONDS, st.lists(SECONDS, min_size=1, max_size=9), SECONDS, SECONDS)
def test_as_simulated(count: int, late: float, work: list[float], message: float, logits: float) -> None:
    assert clocks(count, late, work, message, logits) == pytest.approx(simulated(count, late, work, message, logits))


def test_ranks_that_start_together() -> None:
    for count in (2, 4):
        assert clocks(count, 0, [1, 2, 3], 0.5, 0.25) == (6 + 2 * 0.5 + 0.25, 2 * 0.5)


def test_a_pair_that_is_apart_takes_turns() -> None:
    """Late by a message's time: an even number of syncs ends as apart as it began, an odd one hides the logits' way."""
    assert clocks(2, 1, [1, 1, 1], 1, 1)[0] == 3 + 2 + 1 + 1
    assert clocks(2, 1, [1, 1], 1, 1)[0] == 2 + 1 + 1


def test_who_computes_while_the_other_waits_has_the_memory_alone() -> None:
    def end(late: float) -> float:
        clock = RankClocks(2, late)
        clock.work(KernelTime(together=3, alone=2))
        return clock.gather(0) - late

    assert end(0) == 3
    assert end(1) == pytest.approx(3 - 0.5)  # half of the work in the first second, that of two thirds
    assert end(2) == end(9) == 2


@settings(max_examples=100, deadline=None)
@given(st.floats(0.1, 10), st.floats(1, 3), SECONDS)
def test_sharing_never_helps(alone: float, slower: float, late: float) -> None:
    clock = RankClocks(2, late)
    clock.work(KernelTime(alone * slower, alone))
    assert alone + late <= clock.gather(0) * (1 + 1e-12) <= (alone * slower + late) * (1 + 1e-9)


def test_messages_of_one_wire_follow_each_other() -> None:
    clock = RankClocks(2, 0)
    for key in "ab":
        clock.start(key, 1.0)  # ladder: the second begins while the first is under way
    for key in "ab":
        clock.finish(key)
    assert clock.gather(0) == 2 and clock.waited == 2


@pytest.mark.parametrize(
    ("kernels", "end", "waited"),
    [
        (4.0, 4.0 + 2 * 0.2, 0.0),  # 2 seconds beside the message do the work of 1.6
        (1.0, 1.25 + 1 - 1.25 / 2, 1 - 1.25 / 2),  # 1.25 seconds beside it bring it forward by half of that
    ],
)
@pytest.mark.parametrize("count", [2, 8])
def test_kernels_and_messages_slow_each_other(count: int, kernels: float, end: float, waited: float) -> None:
    clock = RankClocks(count, 0, Overlap(kernels=1.25, switch=0.1))
    clock.start("a", 1.0, slower=2.0)
    clock.work(KernelTime(kernels, kernels))
    clock.finish("a")
    assert (clock.gather(0), clock.waited) == pytest.approx((end + 0.1, waited))


def test_an_all_reduce_that_nothing_runs_beside_costs_nothing_more() -> None:
    clock = RankClocks(2, 0, Overlap(kernels=1.25, switch=0.1))
    clock.work(KernelTime(1, 1))
    clock.start("a", 1.0, slower=2.0)
    clock.finish("a")
    clock.work(KernelTime(1, 1))
    assert clock.gather(0) == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=6), st.floats(1, 3), st.floats(1, 3))
def test_overlap_costs_at_most_that_all_is_slower(
    steps: list[tuple[float, float]], kernels: float, slower: float
) -> None:
    """Ladder's order of steps, beside perfect overlap and beside none with everything slower."""

    def end(overlap: Overlap, slower: float) -> float:
        clock = RankClocks(8, 0, overlap)
        for number, (work, message) in enumerate(steps):
            clock.work(KernelTime(work, work))
            if number:
                clock.finish(number - 1)
            clock.start(number, message, slower)
        clock.finish(len(steps) - 1)
        return clock.gather(0)

    found = end(Overlap(kernels), slower)
    assert end(Overlap(), 1.0) <= found * (1 + 1e-9)
    assert found <= sum(kernels * work + slower * message for work, message in steps) * (1 + 1e-9)
