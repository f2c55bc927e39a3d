"""What the ranks other than 0 do: the work that rank 0 asks for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

_SPIN_SECONDS, _LONGEST_SLEEP = 0.002, 0.002  # how a rank waits for rank 0: it spins first, then sleeps


class Follower(Protocol):
    """The part of the ranks other than 0 in work that rank 0 starts, such as the steps of an engine."""

    @property
    def waiting(self) -> bool:
        """Whether a message of rank 0 that asks for the next piece of work has arrived."""
        ...

    def run_next(self) -> bool:
        """Wait for the next message of rank 0 and do what it asks for. Returns False if rank 0 has stopped."""
        ...


def follow(followers: Sequence[Follower]) -> None:
    """On a rank other than 0, do the work that rank 0 asks for until it has stopped every follower."""
    open_ones = list(followers)
    while open_ones:
        follower = _first_with_an_order(open_ones)
        if not follower.run_next():
            open_ones.remove(follower)


def _first_with_an_order(followers: Sequence[Follower]) -> Follower:
    """Wait until a message of rank 0 arrives. Polls without a pause at first, which loses no time between steps, and
    then with growing pauses, so that an idle engine does not occupy a core."""
    began, pause = time.monotonic(), 0.0
    while True:
        for follower in followers:
            if follower.waiting:
                return follower
        if time.monotonic() - began > _SPIN_SECONDS:
            pause = min(_LONGEST_SLEEP, pause + 1e-5)
            time.sleep(pause)
