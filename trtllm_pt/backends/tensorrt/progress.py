"""How far a compilation is, from TensorRT's progress monitor."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

_SLOW_PHASE = "Computing profile costs"  # takes nearly all of the time; its steps are divided over the profiles
_LEAST = 0.01  # a smaller step is not worth a message


class Progress:
    """Follows TensorRT's phases, of which each may have inner phases, and reports the share that is done, 0 to 1."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report, self._reported = report, 0.0
        self._phases: list[list[Any]] = []  # name, steps and steps done of the phases within the slow one

    def start(self, name: str, steps: int) -> None:
        if self._phases or name == _SLOW_PHASE:
            self._phases.append([name, max(1, steps), 0])

    def step(self, name: str, step: int) -> None:
        for phase in self._phases:
            if phase[0] == name:
                phase[2] = step + 1
        share = 0.0
        for _, steps, done in reversed(self._phases):
            share = min(1.0, (done + share) / steps)
        if share >= self._reported + _LEAST or share == 1.0 > self._reported:
            self._reported = share
            self._report(share)

    def finish(self, name: str) -> None:
        if self._phases and self._phases[-1][0] == name:
            self._phases.pop()


def monitor(trt: ModuleType, progress: Progress) -> Any:
    """Return TensorRT's progress monitor that keeps `progress` informed."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the bindings have no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.start(name, steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress.step(name, step)
            return True  # go on

        def phase_finish(self, name: str) -> None:
            progress.finish(name)

    return Monitor()
