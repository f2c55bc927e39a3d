"""Requests on an engine with in-flight batching: what a user waits, and what the server turns out."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_pt.errors import UsageError
from trtllm_pt.planner.forward import Forward, Model
from trtllm_pt.planner.kernels import Work


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of `input` and `output` tokens: `concurrency` at all times, or `request_rate` a second at random."""

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
    """Means, in seconds. `ttft` is None where requests arrive faster than they are served.

    `prompt` is one prompt alone, `step` a step of all sequences `in_flight`.
    """

    ttft: float | None
    tpot: float
    tokens_per_second: float
    in_flight: float
    prompt: Forward
    step: Forward


def prefill(model: Model, tokens: int) -> Forward:
    """A prompt alone, in chunks where the engine cuts it."""
    chunk = model.engine.max_num_tokens or tokens
    parts = [model.forward(Work(1, min(chunk, tokens - done), done)) for done in range(0, tokens, chunk)]
    return Forward(sum(part.seconds for part in parts), sum(part.all_reduce for part in parts))


def decode(model: Model, workload: Workload, sequences: float) -> Forward:
    """A step of `sequences`, halfway through their answers."""
    past = workload.input + max(0, workload.output - 2) / 2
    step = model.forward(Work(sequences, 1, past))
    return Forward(step.seconds + (sequences - 1) * model.engine.token_seconds, step.all_reduce)


def serve(model: Model, workload: Workload, room: float) -> Served:
    """`room`: sequences that the KV cache holds.

    b requests in flight finish in the time of their steps and of b prompts, which run between the steps:
    (output - 1) d(b) + b P. From that follow the throughput and, by Little's law, all waiting.
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
    joining = step.seconds / 2 if batch > 1 else 0.0  # the step that is under way
    ttft = model.engine.request_seconds + queued + joining + prompt.seconds
    between = (batch - 1) * prompt.seconds / max(1, workload.output - 1)
    return _served(workload, prompt, step, ttft, step.seconds + between, rate, batch)


def _open(model: Model, workload: Workload, prompt: Forward, rate: float, most: float) -> Served:
    full = decode(model, workload, most)
    if rate >= _requests_per_second(workload, prompt, full, most):
        return _saturated(workload, prompt, full, most)
    low, high = 0.0, most  # the batch at which as many requests leave as come
    for _ in range(40):
        middle = (low + high) / 2
        step = decode(model, workload, max(1.0, middle))
        if _requests_per_second(workload, prompt, step, middle) < rate:
            low = middle
        else:
            high = middle
    batch = max(1.0, high)
    step = decode(model, workload, batch)
    busy = rate * prompt.seconds  # below 1: prompts alone would take less than the time there is
    waiting = busy * prompt.seconds / (2 * (1 - busy))  # Pollaczek and Khinchine, prompts of one length
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
