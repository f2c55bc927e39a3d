"""The clocks of the ranks during a forward: one for rank 0, and one for all other ranks, which behave alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelTime:
    """The seconds of a rank's kernels in two situations, which differ if ranks share a memory."""

    together: float = 0.0  # while all ranks work
    alone: float = 0.0  # while the other ranks wait and leave it the whole memory bandwidth

    def __add__(self, other: KernelTime) -> KernelTime:
        return KernelTime(self.together + other.together, self.alone + other.alone)


class RankClocks:
    """Two clocks. The other ranks start `late` seconds after rank 0, the time in which the step plan reaches them.

    A rank waits only for messages of other ranks. So two ranks that start apart stay apart: they compute and wait in
    turn. More than two ranks run together from the first all-reduce on, because the late ranks also need each other's
    parts.
    """

    def __init__(self, count: int, late: float) -> None:
        self._count = count
        self._first, self._others = 0.0, late
        self._work = KernelTime()  # since the last message
        self._wire = (0.0, 0.0)  # when the last all-reduce completes, as they follow each other on the wire
        self._done: dict[object, tuple[float, float]] = {}
        self.waited = 0.0  # seconds that rank 0 waited in all-reduces

    def work(self, time: KernelTime) -> None:
        """Run kernels on all ranks."""
        self._work += time

    def start(self, key: object, seconds: float) -> None:
        """Start an all-reduce, which takes `seconds` if all ranks start it at the same time."""
        self._compute()
        first, others = max(self._first, self._wire[0]), max(self._others, self._wire[1])
        among_others = seconds if self._count > 2 else 0.0
        self._wire = max(first, others + seconds), max(first + seconds, others + among_others)
        self._done[key] = self._wire

    def finish(self, key: object) -> None:
        """Wait on all ranks for the all-reduce that `start` began with the same key."""
        self._compute()
        first, others = self._done[key]
        self.waited += max(0.0, first - self._first)
        self._first, self._others = max(self._first, first), max(self._others, others)

    def gather(self, seconds: float) -> float:
        """Return when rank 0 has the parts of all other ranks, whose message takes `seconds`."""
        self._compute()
        return max(self._first, self._others + seconds)

    def _compute(self) -> None:
        """Advance both clocks by all work since the last message.

        As long as one of them has not started, the other has the memory bandwidth alone.
        """
        if self._work.together:
            apart = abs(self._first - self._others)
            gain = self._work.together / self._work.alone - 1
            seconds = max(self._work.alone, self._work.together - gain * apart)
            self._first, self._others = self._first + seconds, self._others + seconds
            self._work = KernelTime()
