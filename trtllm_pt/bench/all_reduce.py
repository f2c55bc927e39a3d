"""How long ranks take to meet, by size of message and by collective."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtllm_pt.bench.collectives import Collective, Prepared, check_sum
from trtllm_pt.bench.files import Row
from trtllm_pt.bench.fit import fit
from trtllm_pt.bench.percentiles import median
from trtllm_pt.bench.report import machine

if TYPE_CHECKING:
    from mpi4py import MPI

_SAMPLE_SECONDS = 0.02  # of calls one after the other, timed as one: ranks leave the barrier before at different times
_MOST_CALLS = 1000


@dataclass(slots=True)
class Series:
    """Samples of one collective and one size. Seconds of a call, the slowest rank's."""

    collective: str
    dtype: str
    size: int  # bytes
    samples: list[float] = field(default_factory=list)


def sizes_in_range(smallest: int, largest: int, factor: int) -> list[int]:
    """smallest, smallest * factor, … up to and not beyond largest. Bytes."""
    sizes = []
    while smallest <= largest:
        sizes.append(smallest)
        smallest *= factor
    return sizes


def measure(
    comm: MPI.Intracomm, collectives: Sequence[Collective], sizes: Sequence[int], rounds: int
) -> Iterator[list[Series]]:
    """On all ranks; the series so far, after every sample. Rounds go over all sizes and collectives: noise hits all."""
    series = [Series(c.name, c.dtype, size) for size in sizes for c in collectives]
    for _ in range(rounds):
        for number, (size, collective) in enumerate((size, c) for size in sizes for c in collectives):
            prepared = check_sum(collective, comm, size)
            calls = _calls(comm, prepared)
            series[number].samples.append(_time(comm, prepared, calls))
            yield series


def _calls(comm: MPI.Intracomm, prepared: Prepared) -> int:
    """How many fill a sample; the same number on all ranks."""
    seconds = _time(comm, prepared, 2)
    return max(1, min(_MOST_CALLS, round(_SAMPLE_SECONDS / max(seconds, 1e-9))))


def _time(comm: MPI.Intracomm, prepared: Prepared, calls: int) -> float:
    comm.Barrier()
    began = time.perf_counter()
    for _ in range(calls):
        prepared.call()
    prepared.finish()
    taken: list[float] = comm.allgather((time.perf_counter() - began) / calls)
    return max(taken)


def rows(series: Sequence[Series], ranks: int) -> list[Row]:
    """The table so far, under the heads of TensorRT-LLM's all_reduce.py; sizes in bytes."""
    return [_row(each, ranks) for each in series if each.samples]


def _row(series: Series, ranks: int) -> Row:
    seconds = median(series.samples)
    bandwidth = series.size / seconds / 1e9
    return {
        "world_size": ranks,
        "dtype": series.dtype,
        "message size": series.size,
        "strategy": series.collective,
        "duration (ms)": 1e3 * seconds,
        "fastest (ms)": 1e3 * min(series.samples),
        "slowest (ms)": 1e3 * max(series.samples),
        "algbw (GB/s)": bandwidth,
        "busbw (GB/s)": bandwidth * 2 * (ranks - 1) / ranks,  # what a link carries (NCCL-tests' definition)
        "samples": len(series.samples),
    }


def report(series: Sequence[Series], ranks: int) -> dict[str, Any]:
    """`all_reduce` as a planner's machine file has it, with a fit for people."""
    curves = []
    for name in dict.fromkeys(each.collective for each in series):
        points = sorted(
            (each.size, median(each.samples)) for each in series if each.collective == name and each.samples
        )
        if points:
            curves.append({"algorithm": name, "ranks": ranks, "points": points, "source": "measured: all_reduce.py"})
    return {
        "machine": machine(),
        "world_size": ranks,
        "all_reduce": curves,
        "fits": [_fit(curve) for curve in curves if len(curve["points"]) > 1],  # type: ignore[arg-type]
        "rows": rows(series, ranks),
    }


def _fit(curve: dict[str, Any]) -> dict[str, Any]:
    found = fit(curve["points"])
    return {
        "algorithm": curve["algorithm"],
        "ranks": curve["ranks"],
        "latency_s": found.latency,
        "bandwidth_bytes_per_s": found.bandwidth if math.isfinite(found.bandwidth) else None,
        "mean_relative_error": found.error,
    }
