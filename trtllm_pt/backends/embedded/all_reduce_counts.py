"""Count all-reduces per session. The op itself counts those of the whole process."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True, eq=False)
class Reduces:
    """The all-reduces of one session: calls, bytes of messages, and seconds including waiting.

    The numbers are current after a call of `settle`.
    """

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def begin(self) -> None:
        """Count the process's all-reduces for this session from now on, until another session calls `begin`."""
        global _counting
        if _counting is not self:
            settle()
            _counting = self


_counting = Reduces()  # the session for which all-reduces since `_seen` count
_seen: tuple[int, int, float] = (0, 0, 0.0)


def settle() -> None:
    """Add what the op has counted since the last call to the current session. Too slow to be called in every step."""
    global _seen
    now = torch.ops.trtllm_pt.reduce_totals()
    _counting.calls += now[0] - _seen[0]
    _counting.bytes += now[1] - _seen[1]
    _counting.seconds += now[2] - _seen[2]
    _seen = now
