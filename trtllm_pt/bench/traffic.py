"""Requests that come and go while others run: at a rate, or so many at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from trtllm_pt.requests.messages import Request, Runtime, Tokens

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive. Neither: all at once.

    request_rate: per second, whatever is in flight; at even intervals, or `exponential` ones (a Poisson process).
    concurrency: a new one whenever fewer than these are in flight.
    """

    request_rate: float | None = None
    exponential: bool = False
    concurrency: int | None = None

    def arrivals(self, count: int, seed: int) -> list[float]:
        """Seconds from the start."""
        if self.request_rate is None:
            return [0.0] * count
        gaps = np.full(count, 1 / self.request_rate)
        if self.exponential:
            gaps = np.random.default_rng(seed).exponential(1 / self.request_rate, count)
        return (np.cumsum(gaps) - gaps[0]).tolist()  # type: ignore[no-any-return]


@dataclass(slots=True)
class Record:
    """A request and what became of it. Times in seconds from the start of the traffic.

    `start`: when it was due, however late it could be handed over; with a concurrency, when there was room for it.
    """

    request: Request
    start: float
    times: list[float] = field(default_factory=list)  # one per output token
    end: float | None = None  # of the last message
    error: str | None = None

    def take(self, message: Tokens, now: float) -> None:
        self.times += [now] * len(message.token_ids)
        if message.finish_reason is not None:
            self.end = now
            self.error = message.error

    @property
    def good(self) -> bool:
        return self.end is not None and self.error is None

    @property
    def latency(self) -> float:
        assert self.end is not None
        return self.end - self.start

    @property
    def ttft(self) -> float:
        return self.times[0] - self.start

    @property
    def gaps(self) -> list[float]:
        """Between tokens; those that came in one message share the time since the last."""
        return np.diff(self.times).tolist() if len(self.times) > 1 else []

    @property
    def tpot(self) -> float | None:
        """None: a single token has none."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None


def drive(runtime: Runtime, requests: Sequence[Request], load: Load, seed: int = 0) -> Iterator[list[Record]]:
    """The records so far, those in flight included, after every message and at the end."""
    waiting = deque(zip(load.arrivals(len(requests), seed), requests, strict=True))
    records: dict[int, Record] = {}
    flying = 0
    began = time.perf_counter()
    while waiting or flying:
        now = time.perf_counter() - began
        while waiting and waiting[0][0] <= now and (load.concurrency is None or flying < load.concurrency):
            due, request = waiting.popleft()
            records[request.id] = Record(request, due if load.concurrency is None else now)
            runtime.submit(request)
            flying += 1
        until_next = waiting[0][0] - now if waiting and load.concurrency is None else _POLL_SECONDS
        if not flying:
            time.sleep(max(0.0, until_next))
            continue
        messages = runtime.poll(min(_POLL_SECONDS, max(0.0, until_next)))
        now = time.perf_counter() - began
        for message in messages:
            records[message.id].take(message, now)
            flying -= message.finish_reason is not None
        if messages:
            yield list(records.values())
