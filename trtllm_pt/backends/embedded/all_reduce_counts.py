"""The boundaries' all-reduces as the op counted them, by session: the op counts for the whole process."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True, eq=False)
class Reduces:
    """Of one session: calls, bytes of the messages, seconds with waiting. Right once `settle` has been called."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def begin(self) -> None:
        """From here on the process's all-reduces are this session's, until another one begins."""
        global _counting
        if _counting is not self:
            settle()
            _counting = self


_counting = Reduces()  # whose all-reduces those since `_seen` are
_seen: tuple[int, int, float] = (0, 0, 0.0)


def settle() -> None:
    """Give the session that runs what the op has counted since the last time. Once a step would cost too much."""
    global _seen
    now = torch.ops.trtllm_pt.reduce_totals()
    _counting.calls += now[0] - _seen[0]
    _counting.bytes += now[1] - _seen[1]
    _counting.seconds += now[2] - _seen[2]
    _seen = now
