"""The time of an all-reduce, from measurements by size and rank count."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from trtllm_pt.errors import UsageError


@dataclass(frozen=True, slots=True)
class AllReduce:
    """One algorithm measured on a number of ranks. `points`: (bytes, seconds), ascending in bytes."""

    algorithm: str
    ranks: int
    points: tuple[tuple[float, float], ...]
    source: str = ""

    @property
    def largest(self) -> float:
        return self.points[-1][0]

    def seconds(self, size: float) -> float:
        """Straight lines between the points; as the first point below it, on along the last line above the last one."""
        first, last = self.points[0], self.points[-1]
        if size <= first[0]:
            return first[1]
        if size > last[0]:
            left, right = self.points[-2:] if len(self.points) > 1 else (last, last)
            return last[1] + (size - last[0]) * _slope(left, right)
        left, right = next(pair for pair in pairwise(self.points) if size <= pair[1][0])
        return left[1] + (size - left[0]) * _slope(left, right)

    def with_latency(self, factor: float) -> AllReduce:
        """The same bandwidth with the latency, which is the time of the smallest message, times `factor`."""
        more = (factor - 1) * self.points[0][1]
        return AllReduce(self.algorithm, self.ranks, tuple((b, s + more) for b, s in self.points), self.source)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    """Seconds per byte; none where a measurement fell with the size."""
    return max(0.0, (right[1] - left[1]) / (right[0] - left[0])) if right[0] > left[0] else 0.0


def all_reduce_seconds(measured: Collection[AllReduce], algorithms: Collection[str], ranks: int, size: float) -> float:
    """The fastest of the algorithms that an engine has, each within the sizes on which it was measured.

    Only the one measured on the largest messages is carried on beyond them. An engine without any of the algorithms
    named takes what there is. Raises UsageError where nothing was measured on that many ranks.
    """
    if ranks == 1:
        return 0.0
    found = [each for each in measured if each.ranks == ranks]
    if not found:
        known = sorted({each.ranks for each in measured})
        raise UsageError(f"all_reduce: the machine has no times for {ranks} ranks, only for {known}; measure them")
    found = [each for each in found if each.algorithm in algorithms] or found
    within = [each for each in found if size <= each.largest] or [max(found, key=lambda each: each.largest)]
    return min(each.seconds(size) for each in within)
