"""Traffic: requests that arrive while others are in flight, at a rate or with a fixed concurrency.

The requests come from a dataset in TensorRT-LLM's format, or have lengths drawn from normal distributions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.bench.static_batch import Prompts
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.requests.messages import Request, Runtime, SamplingParams, Tokens

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive. With neither a rate nor a concurrency, all arrive at once.

    request_rate: requests per second, independent of how many are in flight. The intervals between them are equal, or
        `exponential`ly distributed (a Poisson process).
    concurrency: the number of requests that are kept in flight.
    """

    request_rate: float | None = None
    exponential: bool = False
    concurrency: int | None = None

    def arrivals(self, count: int, seed: int) -> list[float]:
        """Return when each of `count` requests arrives, in seconds from the start."""
        if self.request_rate is None:
            return [0.0] * count
        gaps = np.full(count, 1 / self.request_rate)
        if self.exponential:
            gaps = np.random.default_rng(seed).exponential(1 / self.request_rate, count)
        return (np.cumsum(gaps) - gaps[0]).tolist()  # type: ignore[no-any-return]


@dataclass(slots=True)
class Record:
    """A request and the times of its tokens, in seconds from the start of the traffic.

    With a request rate, `start` is when the request was due, even if it was submitted later. With a concurrency, it is
    when it was submitted.
    """

    request: Request
    start: float
    times: list[float] = field(default_factory=list)  # one per output token
    end: float | None = None  # time of the last message; None while the request is in flight
    error: str | None = None

    def take(self, message: Tokens, now: float) -> None:
        """Add a message that arrived at `now`."""
        self.times += [now] * len(message.token_ids)
        if message.finish_reason is not None:
            self.end = now
            self.error = message.error

    @property
    def good(self) -> bool:
        """True if the request is complete and did not fail."""
        return self.end is not None and self.error is None

    @property
    def latency(self) -> float:
        """The seconds from the start to the last message of a complete request."""
        assert self.end is not None
        return self.end - self.start

    @property
    def ttft(self) -> float:
        """The seconds from the start to the first token."""
        return self.times[0] - self.start

    @property
    def gaps(self) -> list[float]:
        """The seconds between successive tokens. Between tokens of one message they are 0."""
        return np.diff(self.times).tolist() if len(self.times) > 1 else []

    @property
    def tpot(self) -> float | None:
        """The mean of the seconds between tokens, or None if there is only one token."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None


def drive(runtime: Runtime, requests: Sequence[Request], load: Load, seed: int = 0) -> Iterator[list[Record]]:
    """Submit the requests as `load` says, and wait for all of them.

    After every poll that brought messages, yield the records of all requests submitted so far.
    """
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


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the number of tokens to generate after it."""

    input_ids: tuple[int, ...]
    output_len: int

    def with_other_ids(self, prompts: Prompts) -> Sample:
        """Return a sample of the same lengths for a warm-up, which must not leave this prompt in the cache."""
        return Sample(prompts.draw(len(self.input_ids)), self.output_len)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Normal distributions of prompt and output lengths in tokens. Drawn lengths are rounded and at least 1."""

    input_mean: int
    input_stdev: float
    output_mean: int
    output_stdev: float

    def draw(self, count: int, prompts: Prompts, seed: int) -> list[Sample]:
        """Draw `count` samples."""
        random = np.random.default_rng(seed)
        inputs = random.normal(self.input_mean, self.input_stdev, count)
        outputs = random.normal(self.output_mean, self.output_stdev, count)
        return [
            Sample(prompts.draw(max(1, round(given))), max(1, round(wanted)))
            for given, wanted in zip(inputs.tolist(), outputs.tolist(), strict=True)
        ]


def read_dataset(path: Path) -> list[Sample]:
    """Read `{"samples": [{"input_ids": […], "output_len": n}]}`.

    Raises UsageError that names the sample if the file has another form.
    """
    samples = read_json(path).get("samples")
    if not isinstance(samples, list) or not samples:
        raise UsageError(f'{path} has no samples: it must hold {{"samples": [{{"input_ids": […], "output_len": n}}]}}')
    return [_sample(data, f"{path}: samples[{number}]") for number, data in enumerate(samples)]


def _sample(data: Any, where: str) -> Sample:
    if not isinstance(data, dict):
        raise UsageError(f"{where} must be an object, not a {type(data).__name__}")
    ids, length = data.get("input_ids"), data.get("output_len")
    if not isinstance(ids, list) or not ids:
        raise UsageError(f"{where}: input_ids ({ids!r}) must be a list of token ids")
    if type(length) is not int or length < 1:
        raise UsageError(f"{where}: output_len ({length!r}) must be a whole number of at least 1")
    return Sample(tuple(ids), length)


def as_requests(samples: Sequence[Sample], manifest: EngineManifest) -> list[Request]:
    """Make requests that are greedy and have no end token.

    Raises UsageError that names the sample if it exceeds one of the engine's limits.
    """
    limits = manifest.limits
    requests = []
    for number, sample in enumerate(samples):
        sampling = SamplingParams(max_tokens=sample.output_len, end_id=-1)
        request = Request(id=number, token_ids=sample.input_ids, sampling=sampling)
        try:
            limits.check(request)
        except UsageError as error:
            raise UsageError(f"samples[{number}]: {error}") from None
        length = len(sample.input_ids) + sample.output_len
        if length > manifest.max_seq_len:
            raise UsageError(
                f"samples[{number}]: {len(sample.input_ids)} input tokens and output_len ({sample.output_len}) are "
                f"{length} tokens together, but the engine's max_seq_len is {manifest.max_seq_len}"
            )
        requests.append(request)
    return requests
