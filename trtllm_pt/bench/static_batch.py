"""Static batches: all prompts are submitted at once, and every sequence gets the same number of output tokens.

Times are taken outside the engine. The table has the columns of TensorRT-LLM's `benchmark.py`, and adds what the
all-reduces between ranks cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.bench.facts import Facts
from trtllm_pt.bench.results import Row, bar, median, percentiles
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.requests.messages import Request, Runtime, SamplingParams, Stats

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """The number of sequences in a batch, and the tokens of each prompt and of each output."""

    batch_size: int
    input_length: int
    output_length: int

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.input_length} in, {self.output_length} out"


@dataclass(frozen=True, slots=True)
class Batch:
    """The times of one run of a case in seconds. Times of a sequence are means over the batch."""

    latency: float  # from the submission to the last token of the whole batch
    ttft: float  # from the submission to a sequence's first token
    tpot: float  # between a sequence's tokens after the first one; 0 if there is only one
    all_reduce: float | None  # rank 0's time in all-reduces, with waiting; None if the engine does not measure it


@dataclass(frozen=True, slots=True)
class Effort:
    """How often a case runs: `warm_up` runs are not counted, then at least `num_runs` runs and `duration` seconds."""

    warm_up: int = 2
    num_runs: int = 10
    duration: float = 60.0


class Prompts:
    """Random token ids. No prompt is drawn twice, because an engine does not compute a prefix that it has cached."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._vocab_size = vocab_size

    def draw(self, length: int) -> tuple[int, ...]:
        """Draw one prompt of `length` tokens."""
        return tuple(self._random.integers(0, self._vocab_size, length).tolist())

    def batch(self, case: Case) -> list[tuple[int, ...]]:
        """Draw the prompts of one batch."""
        return [self.draw(case.input_length) for _ in range(case.batch_size)]


def check_case(manifest: EngineManifest, case: Case) -> None:
    """Raise UsageError if the case exceeds one of the engine's limits."""
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
            f"but the engine's max_seq_len is {manifest.max_seq_len}"
        )
    assert options.max_input_len is not None
    if case.input_length > options.max_input_len:
        raise UsageError(
            f"input_output_len ({case.input_length},{case.output_length}): "
            f"the input must not exceed the engine's max_input_len ({options.max_input_len})"
        )


def measure_cases(
    runtime: Runtime, facts: Facts, cases: Sequence[Case], prompts: Prompts, effort: Effort
) -> Iterator[tuple[int, Row]]:
    """Run all cases. After every counted run, yield the number of its case and the case's table row so far."""
    for number, case in enumerate(cases):
        with bar(effort.num_runs, str(case), "run") as progress:
            for runs in measure(runtime, case, prompts, effort):
                progress.update()
                yield number, row(facts, case, runs, runtime.stats())


def measure(runtime: Runtime, case: Case, prompts: Prompts, effort: Effort) -> Iterator[list[Batch]]:
    """Run one case. Yield all counted runs so far, after each of them."""
    for _ in range(effort.warm_up):
        run_batch(runtime, prompts.batch(case), case.output_length)
    runs: list[Batch] = []
    began = time.monotonic()
    while len(runs) < effort.num_runs or time.monotonic() - began < effort.duration:
        runs.append(run_batch(runtime, prompts.batch(case), case.output_length))
        yield runs


def run_batch(runtime: Runtime, prompts: Sequence[tuple[int, ...]], output_length: int) -> Batch:
    """Run one batch, greedily and without an end token, and time it.

    Raises RunError if a request fails or stops before it has `output_length` tokens.
    """
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
        raise RunError(f"a request for {output_length} tokens stopped after {min(counts)}")
    after = runtime.stats().all_reduce_seconds
    gaps = [(end - start) / (output_length - 1) for start, end in zip(first, last, strict=True) if output_length > 1]
    return Batch(
        latency=max(last),
        ttft=float(np.mean(first)),
        tpot=float(np.mean(gaps)) if gaps else 0.0,
        all_reduce=None if before is None or after is None else after - before,
    )


def row(facts: Facts, case: Case, runs: Sequence[Batch], stats: Stats) -> Row:
    """Return a case's row of the table, with times in milliseconds.

    Times are means over the runs if the name says nothing else, but `ttft(ms)` and `tpot(ms)` are medians.
    """
    latency = percentiles([run.latency for run in runs], 1e3)
    tokens = case.batch_size * case.output_length
    generating = [run.latency - run.ttft for run in runs]
    waited = [run.all_reduce for run in runs if run.all_reduce is not None]
    total = sum(run.latency for run in runs)
    later = sum(generating)
    return facts.columns() | {
        "batch_size": case.batch_size,
        "input_length": case.input_length,
        "output_length": case.output_length,
        "peak_mem(gb)": _rounded(None if stats.peak_memory_bytes is None else stats.peak_memory_bytes / 1e9),
        "tokens_per_sec": _rounded(tokens * len(runs) / total),
        "percentile50(ms)": _rounded(latency["p50"]),
        "percentile90(ms)": _rounded(latency["p90"]),
        "percentile95(ms)": _rounded(latency["p95"]),
        "percentile99(ms)": _rounded(latency["p99"]),
        "latency(ms)": _rounded(latency["average"]),
        "generation_time(ms)": _rounded(1e3 * later / len(runs)),
        "total_generated_tokens": tokens - case.batch_size,
        "generation_tokens_per_second": _rounded((tokens - case.batch_size) * len(runs) / later if later else 0.0),
        "ttft(ms)": _rounded(1e3 * median([run.ttft for run in runs])),
        "tpot(ms)": _rounded(1e3 * median([run.tpot for run in runs])),
        "num_runs": len(runs),
        "syncs_per_token": facts.syncs(stats.sync_points_seen),
        "hops_per_step": _rounded(stats.hops_per_step),
        "all_reduce_bytes_per_token": facts.boundary_bytes,
        "all_reduce_time(ms)": _rounded(1e3 * sum(waited) / len(waited) if waited else None),
        "all_reduce_share": _rounded(sum(waited) / total if waited else None),
    }


def _rounded(value: float | None) -> float | None:
    """Round to four significant digits."""
    return None if value is None else float(f"{value:.4g}")
