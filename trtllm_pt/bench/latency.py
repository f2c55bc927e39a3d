"""Static batches, case by case: what TensorRT-LLM's `benchmark.py` measured, and what the ranks' meetings cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trtllm_pt.bench.batch import Batch, Case, Prompts, run_batch
from trtllm_pt.bench.facts import Facts
from trtllm_pt.bench.files import Row
from trtllm_pt.bench.percentiles import median, percentiles
from trtllm_pt.bench.progress import bar
from trtllm_pt.requests.messages import Runtime, Stats


@dataclass(frozen=True, slots=True)
class Effort:
    """Runs of a case: `warm_up` that do not count, then until there are `num_runs` and `duration` seconds have gone."""

    warm_up: int = 2
    num_runs: int = 10
    duration: float = 60.0


def measure_cases(
    runtime: Runtime, facts: Facts, cases: Sequence[Case], prompts: Prompts, effort: Effort
) -> Iterator[tuple[int, Row]]:
    """After every run that counts: the number of its case, and that case's line of the table so far."""
    for number, case in enumerate(cases):
        with bar(effort.num_runs, str(case), "run") as progress:
            for runs in measure(runtime, case, prompts, effort):
                progress.update()
                yield number, row(facts, case, runs, runtime.stats())


def measure(runtime: Runtime, case: Case, prompts: Prompts, effort: Effort) -> Iterator[list[Batch]]:
    """The runs so far, after every run that counts."""
    for _ in range(effort.warm_up):
        run_batch(runtime, prompts.batch(case), case.output_length)
    runs: list[Batch] = []
    began = time.monotonic()
    while len(runs) < effort.num_runs or time.monotonic() - began < effort.duration:
        runs.append(run_batch(runtime, prompts.batch(case), case.output_length))
        yield runs


def row(facts: Facts, case: Case, runs: Sequence[Batch], stats: Stats) -> Row:
    """One line of the table. Times in milliseconds, means unless the name says otherwise; ttft and tpot medians."""
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
    """Four figures that mean something."""
    return None if value is None else float(f"{value:.4g}")
