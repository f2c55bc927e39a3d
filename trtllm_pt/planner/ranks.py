"""The clocks of a forward's ranks: rank 0's, and that of all others, who are alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds of a rank's kernels: while all ranks work, and while the others wait and leave it the whole memory."""

    together: float = 0.0
    alone: float = 0.0

    def __add__(self, other: Busy) -> Busy:
        return Busy(self.together + other.together, self.alone + other.alone)


class Ranks:
    """Both clocks begin together, or the others' `late` seconds later: so long does it take to tell them of the step.

    Ranks wait for each other alone, so a pair of them that starts apart stays apart: each waits for a message while the
    other computes, in turn. More than two meet again at the first all-reduce, as the late ones need each other's parts.
    """

    def __init__(self, count: int, late: float) -> None:
        self._count = count
        self._first, self._others = 0.0, late
        self._work = Busy()  # since the last message
        self._wire = (0.0, 0.0)  # one all-reduce after the other
        self._done: dict[object, tuple[float, float]] = {}
        self.waited = 0.0  # of rank 0, in all-reduces

    def work(self, busy: Busy) -> None:
        self._work += busy

    def start(self, key: object, seconds: float) -> None:
        """An all-reduce that takes `seconds` where all come at once."""
        self._compute()
        first, others = max(self._first, self._wire[0]), max(self._others, self._wire[1])
        among_others = seconds if self._count > 2 else 0.0
        self._wire = max(first, others + seconds), max(first + seconds, others + among_others)
        self._done[key] = self._wire

    def finish(self, key: object) -> None:
        self._compute()
        first, others = self._done[key]
        self.waited += max(0.0, first - self._first)
        self._first, self._others = max(self._first, first), max(self._others, others)

    def gather(self, seconds: float) -> float:
        """When rank 0 has the others' part."""
        self._compute()
        return max(self._first, self._others + seconds)

    def _compute(self) -> None:
        """All that was asked for, on both clocks. As long as the one has not begun, the other has the memory alone."""
        if self._work.together:
            apart = abs(self._first - self._others)
            gain = self._work.together / self._work.alone - 1
            seconds = max(self._work.alone, self._work.together - gain * apart)
            self._first, self._others = self._first + seconds, self._others + seconds
            self._work = Busy()
