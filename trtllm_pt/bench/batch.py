"""A static batch: all prompts at once, as many tokens each, timed from outside the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.requests.messages import Request, Runtime, SamplingParams

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """Sequences of a batch, tokens of each prompt and of each output."""

    batch_size: int
    input_length: int
    output_length: int

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.input_length} in, {self.output_length} out"


@dataclass(frozen=True, slots=True)
class Batch:
    """One run of a case. Seconds; means over the sequences."""

    latency: float  # from the submission to the last token of all
    ttft: float  # from the submission to the first token
    tpot: float  # between a sequence's tokens after its first; 0 where there is only one
    all_reduce: float | None  # of rank 0 in all-reduces, waiting included; None: the engine cannot tell


def check_case(manifest: EngineManifest, case: Case) -> None:
    """Raises UsageError for a case that the engine has no room for."""
    options = manifest.options
    if case.batch_size > options.max_batch_size:
        raise UsageError(
            f"batch_size ({case.batch_size}) must not exceed the engine's max_batch_size ({options.max_batch_size}): "
            "build it with a larger --max_batch_size"
        )
    length = case.input_length + case.output_length
    if length > manifest.max_seq_len:
        raise UsageError(
            f"input_output_len ({case.input_length},{case.output_length}) is {length} tokens together, "
            f"the engine's max_seq_len is {manifest.max_seq_len}"
        )
    assert options.max_input_len is not None
    if case.input_length > options.max_input_len:
        raise UsageError(
            f"input_output_len ({case.input_length},{case.output_length}): the engine's max_input_len is "
            f"{options.max_input_len}"
        )


class Prompts:
    """Random token ids, never the same prompt twice: a prefix that the engine knows would not be computed."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._vocab_size = vocab_size

    def draw(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, self._vocab_size, length).tolist())

    def batch(self, case: Case) -> list[tuple[int, ...]]:
        return [self.draw(case.input_length) for _ in range(case.batch_size)]


def run_batch(runtime: Runtime, prompts: Sequence[tuple[int, ...]], output_length: int) -> Batch:
    """Greedy and without an end token. Raises RunError where a request fails or ends early."""
    sampling = SamplingParams(max_tokens=output_length, end_id=-1)
    requests = [Request(id=number, token_ids=prompt, sampling=sampling) for number, prompt in enumerate(prompts)]
    before = runtime.stats().all_reduce_seconds
    first, last, counts = [0.0] * len(prompts), [0.0] * len(prompts), [0] * len(prompts)
    unfinished = len(prompts)
    began = time.perf_counter()
    for request in requests:
        runtime.submit(request)
    while unfinished:
        messages = runtime.poll(_POLL_SECONDS)
        now = time.perf_counter() - began
        for message in messages:
            if message.error is not None:
                raise RunError(message.error)
            counts[message.id] += len(message.token_ids)
            if message.token_ids:
                first[message.id] = first[message.id] or now
                last[message.id] = now
            unfinished -= message.finish_reason is not None
    if set(counts) != {output_length}:
        raise RunError(f"{output_length} tokens were asked for, {min(counts)} came")
    after = runtime.stats().all_reduce_seconds
    gaps = [(end - start) / (output_length - 1) for start, end in zip(first, last, strict=True) if output_length > 1]
    return Batch(
        latency=max(last),
        ttft=float(np.mean(first)),
        tpot=float(np.mean(gaps)) if gaps else 0.0,
        all_reduce=None if before is None or after is None else after - before,
    )
