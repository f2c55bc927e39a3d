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


@dataclass(frozen=True, slots=True)
class Overlap:
    """What it costs to run kernels beside an all-reduce."""

    kernels: float = 1.0  # how many times longer the kernels take meanwhile
    switch: float = 0.0  # seconds for the kernels to wait for the all-reduce, which is on another stream


class RankClocks:
    """Two clocks. The other ranks start `late` seconds after rank 0, the time in which the step plan reaches them.

    A rank waits only for messages of other ranks. So two ranks that start apart stay apart: they compute and wait in
    turn. More than two ranks run together from the first all-reduce on, because the late ranks also need each other's
    parts. An all-reduce that is started before other work and finished after it costs what `overlap` says.
    """

    def __init__(self, count: int, late: float, overlap: Overlap | None = None) -> None:
        self._count, self._overlap = count, overlap or Overlap()
        self._first, self._others = 0.0, late
        self._work = KernelTime()  # since the last message
        self._wire = (0.0, 0.0)  # when the last all-reduce completes, as they follow each other on the wire
        self._done: dict[object, tuple[float, float]] = {}
        self._slower = 1.0  # how many times longer the last all-reduce takes beside kernels
        self._overlapped: set[object] = set()  # all-reduces that kernels have run beside
        self.waited = 0.0  # seconds that rank 0 waited in all-reduces

    def work(self, time: KernelTime) -> None:
        """Run kernels on all ranks."""
        self._work += time

    def start(self, key: object, seconds: float, slower: float = 1.0) -> None:
        """Start an all-reduce, which takes `seconds` if all ranks start it at the same time.

        It takes `slower` times as long while kernels run beside it.
        """
        self._compute()
        self._slower = slower
        first, others = max(self._first, self._wire[0]), max(self._others, self._wire[1])
        among_others = seconds if self._count > 2 else 0.0
        self._wire = max(first, others + seconds), max(first + seconds, others + among_others)
        self._done[key] = self._wire

    def finish(self, key: object) -> None:
        """Wait on all ranks for the all-reduce that `start` began with the same key."""
        self._compute()
        first, others = self._done.pop(key)
        self.waited += max(0.0, first - self._first)
        switch = self._overlap.switch if key in self._overlapped else 0.0
        self._first, self._others = max(self._first, first) + switch, max(self._others, others) + switch

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
            self._first, self._others = self._beside_messages(0, seconds), self._beside_messages(1, seconds)
            self._overlapped |= self._done.keys()
            self._work = KernelTime()

    def _beside_messages(self, clock: int, seconds: float) -> float:
        """Return when kernels of `seconds` end that start now on a clock, and delay the messages under way there."""
        now = (self._first, self._others)[clock]

        def both(done: float) -> float:
            """How long the kernels and a message that would be done at `done` run beside each other."""
            return min(self._overlap.kernels * seconds, self._slower * max(0.0, done - now))

        def delayed(done: tuple[float, float]) -> tuple[float, float]:
            later = done[clock] + both(done[clock]) * (1 - 1 / self._slower)
            return (later, done[1]) if clock == 0 else (done[0], later)

        end = now + seconds + both(self._wire[clock]) * (1 - 1 / self._overlap.kernels)
        self._wire = delayed(self._wire)
        self._done = {key: delayed(done) for key, done in self._done.items()}
        return end
