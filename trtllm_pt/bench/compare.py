"""Compare engines whose batches take turns, so that noise of the machine affects all alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.bench.results import Row, median, ratios
from trtllm_pt.bench.static_batch import Batch, Case, Prompts, run_batch
from trtllm_pt.errors import RunError
from trtllm_pt.requests.messages import Runtime

Samples = dict[Case, list[list[Batch]]]  # for each case and round: one batch per contender, in the contenders' order
_TIMES = ("ttft", "tpot", "latency")
_MPI_SETTINGS = ("MPIR_", "MPICH_", "UCX_", "FI_", "OMPI_MCA_", "NCCL_")


def measure(
    runtimes: Sequence[Runtime], contenders: Sequence[Contender], cases: Sequence[Case], rounds: int, seed: int
) -> Iterator[Samples]:
    """Run all rounds. After every round of a case, yield all complete rounds so far.

    The first round of a case is a warm-up. In round r contender r starts, so that none always follows the same other.
    Raises RunError if a request fails, or if an engine does not have the all-reduces of its schedule.
    """
    samples: Samples = {case: [] for case in cases}
    drawn = [Prompts(each.facts.model.vocab_size, seed) for each in contenders]
    for number in range(rounds + 1):
        for case in cases:
            taken: dict[int, Batch] = {}
            for turn in range(len(runtimes)):
                index = (turn + number) % len(runtimes)
                taken[index] = run_batch(runtimes[index], drawn[index].batch(case), case.output_length)
            if number:
                samples[case].append([taken[index] for index in range(len(runtimes))])
                yield samples
    for runtime, contender in zip(runtimes, contenders, strict=True):
        _check_count(runtime, contender)


def _check_count(runtime: Runtime, contender: Contender) -> None:
    """Raise RunError if the engine counted another number of all-reduces than its schedule has."""
    seen, said = runtime.stats().sync_points_seen, contender.facts.inspected["sync_points"]
    if seen not in (None, said):
        raise RunError(f"{contender.name}: {seen} all-reduces per forward were counted, its schedule has {said}")


def rows(contenders: Sequence[Contender], samples: Samples) -> list[Row]:
    """Return a row per case and contender.

    Ratios divide a contender's times by those of the first contender in the same rounds: below 1 is faster.
    """
    return [
        _row(each, index, case, taken)
        for case, taken in samples.items()
        if taken
        for index, each in enumerate(contenders)
    ]


def _row(contender: Contender, index: int, case: Case, taken: list[list[Batch]]) -> Row:
    facts, own = contender.facts, [batches[index] for batches in taken]
    baseline = [batches[0] for batches in taken]
    waited = [batch.all_reduce / batch.latency for batch in own if batch.all_reduce is not None]
    row: dict[str, object] = {
        "name": contender.name,
        "batch_size": case.batch_size,
        "input_length": case.input_length,
        "output_length": case.output_length,
        **facts.columns(),
        "parameters": facts.inspected["parameters"],
        "syncs_per_token": facts.syncs(None),
        "hops_per_step": facts.hops,
        "all_reduce_bytes_per_token": facts.boundary_bytes,
        "rounds": len(own),
        "ttft(ms)": 1e3 * median([batch.ttft for batch in own]),
        "tpot(ms)": 1e3 * median([batch.tpot for batch in own]),
        "latency(ms)": 1e3 * median([batch.latency for batch in own]),
        "tokens_per_sec": case.batch_size * case.output_length / median([batch.latency for batch in own]),
        "all_reduce_share": median(waited) if waited else None,
    }
    for name in _TIMES:
        ours, theirs = [getattr(b, name) for b in own], [getattr(b, name) for b in baseline]
        found = ratios(ours, theirs) if all(theirs) else {}
        row |= {f"{name}_ratio{suffix}": found.get(key) for key, suffix in _SUFFIXES.items()}
    return row


_SUFFIXES = {"median": "", "p10": "_p10", "p90": "_p90", "minimum": "_min", "maximum": "_max"}


def report(contenders: Sequence[Contender], samples: Samples) -> dict[str, Any]:
    """Return the rows, every sample, and what all contenders have in common."""
    return {
        "machine": machine_facts(),
        "baseline": contenders[0].name,
        "world_size": contenders[0].facts.manifest.ranks,
        "collective_settings": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(_MPI_SETTINGS)
        },
        "rows": rows(contenders, samples),
        "samples": [
            {
                "name": each.name,
                "batch_size": case.batch_size,
                "input_length": case.input_length,
                "output_length": case.output_length,
                **{f"{name}_s": [getattr(batches[index], name) for batches in taken] for name in _TIMES},
                "all_reduce_s": [batches[index].all_reduce for batches in taken],
            }
            for case, taken in samples.items()
            for index, each in enumerate(contenders)
        ],
    }
