"""The time of an all-reduce, from measurements by message size and number of ranks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trtllm_pt.errors import UsageError


@dataclass(frozen=True, slots=True)
class AllReduce:
    """The times of one algorithm on a number of ranks. `points` are (bytes, seconds), ascending in bytes."""

    algorithm: str
    ranks: int
    points: tuple[tuple[float, float], ...]
    source: str = ""

    @property
    def largest(self) -> float:
        """The largest message that was measured, in bytes."""
        return self.points[-1][0]

    def seconds(self, size: float) -> float:
        """Return the seconds for a message of `size` bytes, on straight lines between the points.

        Messages smaller than the first point take its time, and for larger ones than the last point the last line is
        continued. A message never takes longer than a larger one, although measurements can say so.
        """
        points = self._rising()
        first, last = points[0], points[-1]
        if size <= first[0]:
            return first[1]
        if size > last[0]:
            left, right = points[-2:] if len(points) > 1 else (last, last)
            return last[1] + (size - last[0]) * _slope(left, right)
        left, right = next(pair for pair in pairwise(points) if size <= pair[1][0])
        return left[1] + (size - left[0]) * _slope(left, right)

    def _rising(self) -> list[tuple[float, float]]:
        """Return the points, each with the shortest time of its own and all larger messages."""
        shortest = list(accumulate((seconds for _, seconds in reversed(self.points)), min))
        return [(size, seconds) for (size, _), seconds in zip(self.points, reversed(shortest), strict=True)]

    def with_latency(self, factor: float) -> AllReduce:
        """Return the same bandwidth with `factor` times the latency, which is the time of the smallest message."""
        more = (factor - 1) * self.points[0][1]
        return AllReduce(self.algorithm, self.ranks, tuple((b, s + more) for b, s in self.points), self.source)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    """Return the seconds per byte between two points, or 0 for a point and itself."""
    return (right[1] - left[1]) / (right[0] - left[0]) if right[0] > left[0] else 0.0


def all_reduce_seconds(measured: Collection[AllReduce], algorithms: Collection[str], ranks: int, size: float) -> float:
    """Return the seconds of the fastest of an engine's `algorithms` for a message of `size` bytes.

    Each algorithm counts only up to the largest message on which it was measured; beyond all of them, the one measured
    on the largest messages counts. If none of `algorithms` was measured, all that were measured count. Raises
    UsageError if nothing was measured on this number of ranks.
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
