"""All-reduces alone: their time by message size and collective, and a latency and a bandwidth fitted to it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trtllm_pt.bench.collectives import Collective, Prepared, check_sum
from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.bench.results import Row, median

if TYPE_CHECKING:
    from mpi4py import MPI

# A sample is many calls timed together, because ranks do not leave the barrier before them at the same time.
_SAMPLE_SECONDS = 0.02
_MOST_CALLS = 1000


@dataclass(slots=True)
class Series:
    """The samples of one collective and one message size: the seconds of a call on the slowest rank."""

    collective: str
    dtype: str
    size: int  # bytes
    samples: list[float] = field(default_factory=list)


def sizes_in_range(smallest: int, largest: int, factor: int) -> list[int]:
    """Return smallest, smallest * factor, … up to `largest`, all in bytes."""
    sizes = []
    while smallest <= largest:
        sizes.append(smallest)
        smallest *= factor
    return sizes


def measure(
    comm: MPI.Intracomm, collectives: Sequence[Collective], sizes: Sequence[int], rounds: int
) -> Iterator[list[Series]]:
    """Time all-reduces on all ranks, and yield all series so far after every sample.

    Each round takes one sample of every size and collective, so that noise of the machine affects all alike.
    """
    series = [Series(c.name, c.dtype, size) for size in sizes for c in collectives]
    for _ in range(rounds):
        for number, (size, collective) in enumerate((size, c) for size in sizes for c in collectives):
            prepared = check_sum(collective, comm, size)
            calls = _calls(comm, prepared)
            series[number].samples.append(_time(comm, prepared, calls))
            yield series


def _calls(comm: MPI.Intracomm, prepared: Prepared) -> int:
    """Return the number of calls that fill a sample. It is the same on all ranks."""
    seconds = _time(comm, prepared, 2)
    return max(1, min(_MOST_CALLS, round(_SAMPLE_SECONDS / max(seconds, 1e-9))))


def _time(comm: MPI.Intracomm, prepared: Prepared, calls: int) -> float:
    """Return the seconds of a call on the slowest rank."""
    comm.Barrier()
    began = time.perf_counter()
    for _ in range(calls):
        prepared.call()
    prepared.finish()
    taken: list[float] = comm.allgather((time.perf_counter() - began) / calls)
    return max(taken)


def rows(series: Sequence[Series], ranks: int) -> list[Row]:
    """Return the table so far, with the columns of TensorRT-LLM's all_reduce.py. Sizes are in bytes."""
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
        "busbw (GB/s)": bandwidth * 2 * (ranks - 1) / ranks,  # bandwidth of a link, as nccl-tests defines it
        "samples": len(series.samples),
    }


def report(series: Sequence[Series], ranks: int) -> dict[str, Any]:
    """Return the report. Its `all_reduce` has the form that a machine file of the planner has.

    `fits` sums up each curve as a latency and a bandwidth.
    """
    curves = []
    for name in dict.fromkeys(each.collective for each in series):
        points = sorted(
            (each.size, median(each.samples)) for each in series if each.collective == name and each.samples
        )
        if points:
            curves.append({"algorithm": name, "ranks": ranks, "points": points, "source": "measured: all_reduce.py"})
    return {
        "machine": machine_facts(),
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


@dataclass(frozen=True, slots=True)
class Fit:
    """The line seconds = latency + bytes / bandwidth through measured points."""

    latency: float  # seconds
    bandwidth: float  # bytes per second; infinite if the time does not grow with the size
    error: float  # mean of |fitted / measured - 1|


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """Fit a latency and a bandwidth to points of (bytes, seconds).

    The fit minimises the squares of the relative errors, because the sizes span orders of magnitude. If one of the
    two terms came out negative, it is 0 and the other one alone is fitted.
    """
    sizes, seconds = np.array(points, float).T
    columns = np.stack([1 / seconds, sizes / seconds], axis=1)
    terms, *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    for negative in np.flatnonzero(terms < 0):
        other = columns[:, 1 - negative]
        terms[negative], terms[1 - negative] = 0.0, other.sum() / (other @ other)
        break
    latency, per_byte = (float(term) for term in terms)
    error = float(np.abs((latency + sizes * per_byte) / seconds - 1).mean())
    return Fit(latency, 1 / per_byte if per_byte else float("inf"), error)
