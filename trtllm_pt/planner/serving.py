"""Requests on an engine with in-flight batching: how long a user waits, and the server's throughput."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_pt.errors import UsageError
from trtllm_pt.planner.forward import Forward, Model
from trtllm_pt.planner.kernels import Work


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests with `input` prompt tokens and `output` output tokens.

    Either `concurrency` requests are in flight at all times, or `request_rate` requests per second arrive at random
    times. Raises UsageError if a number is too small.
    """

    input: int
    output: int
    concurrency: int = 1
    request_rate: float | None = None
    max_batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("input", "output", "concurrency", "max_batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.request_rate is not None and self.request_rate <= 0:
            raise UsageError(f"request_rate ({self.request_rate:g}) must be above 0 requests per second")


@dataclass(frozen=True, slots=True)
class Served:
    """Means over the requests of a workload. Times are in seconds.

    `ttft` is None if requests arrive faster than the server can process them. `prompt` is the forward of one prompt
    alone, and `step` is a step of all sequences `in_flight`.
    """

    ttft: float | None
    tpot: float
    tokens_per_second: float
    in_flight: float
    prompt: Forward
    step: Forward


def prefill(model: Model, tokens: int) -> Forward:
    """Predict one prompt alone, in chunks if the engine splits prompts."""
    chunk = model.engine.max_num_tokens or tokens
    parts = [model.forward(Work(1, min(chunk, tokens - done), done)) for done in range(0, tokens, chunk)]
    return Forward(sum(part.seconds for part in parts), sum(part.all_reduce for part in parts))


def decode(model: Model, workload: Workload, sequences: float) -> Forward:
    """Predict a step of `sequences` that are halfway through their outputs."""
    past = workload.input + max(0, workload.output - 2) / 2
    step = model.forward(Work(sequences, 1, past))
    return Forward(step.seconds + (sequences - 1) * model.engine.token_seconds, step.all_reduce)


def serve(model: Model, workload: Workload, room: float) -> Served:
    """Predict a workload. `room` is the number of sequences that the KV cache holds.

    b requests in flight finish in the time of their steps and of b prompts, which run between the steps:
    (output - 1) d(b) + b P. The throughput follows from that, and all waiting times follow by Little's law.
    """
    prompt = prefill(model, workload.input)
    most = max(1.0, min(float(workload.max_batch_size), room))
    if workload.request_rate is None:
        return _closed(model, workload, prompt, min(float(workload.concurrency), most))
    return _open(model, workload, prompt, workload.request_rate, most)


def _requests_per_second(workload: Workload, prompt: Forward, step: Forward, batch: float) -> float:
    return batch / ((workload.output - 1) * step.seconds + batch * prompt.seconds)


def _closed(model: Model, workload: Workload, prompt: Forward, batch: float) -> Served:
    step = decode(model, workload, batch)
    rate = _requests_per_second(workload, prompt, step, batch)
    queued = (workload.concurrency - batch) / rate
    joining = step.seconds / 2 if batch > 1 else 0.0  # half of the step that runs when a request arrives
    ttft = model.engine.request_seconds + queued + joining + prompt.seconds
    between = (batch - 1) * prompt.seconds / max(1, workload.output - 1)
    return _served(workload, prompt, step, ttft, step.seconds + between, rate, batch)


def _open(model: Model, workload: Workload, prompt: Forward, rate: float, most: float) -> Served:
    full = decode(model, workload, most)
    if rate >= _requests_per_second(workload, prompt, full, most):
        return _saturated(workload, prompt, full, most)
    low, high = 0.0, most  # find the batch at which as many requests leave as arrive
    for _ in range(40):
        middle = (low + high) / 2
        step = decode(model, workload, max(1.0, middle))
        if _requests_per_second(workload, prompt, step, middle) < rate:
            low = middle
        else:
            high = middle
    batch = max(1.0, high)
    step = decode(model, workload, batch)
    busy = rate * prompt.seconds  # share of the time in prompts, below 1 as the server is not saturated
    waiting = busy * prompt.seconds / (2 * (1 - busy))  # Pollaczek-Khinchine formula for equal prompts
    ttft = model.engine.request_seconds + waiting + step.seconds / 2 * min(1.0, high) + prompt.seconds
    return _served(workload, prompt, step, ttft, step.seconds / (1 - busy), rate, high)


def _saturated(workload: Workload, prompt: Forward, step: Forward, batch: float) -> Served:
    between = (batch - 1) * prompt.seconds / max(1, workload.output - 1)
    rate = _requests_per_second(workload, prompt, step, batch)
    return _served(workload, prompt, step, None, step.seconds + between, rate, batch)


def _served(
    workload: Workload, prompt: Forward, step: Forward, ttft: float | None, tpot: float, rate: float, batch: float
) -> Served:
    return Served(ttft, tpot, rate * workload.output, batch, prompt, step)
