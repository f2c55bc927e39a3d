"""One visit to a link, on all ranks: compare the engines, and measure the machine for the planner.

The machine is measured again in every round, because its speed changes within seconds if it shares its memory with
other machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from trtllm_pt.backends.backend import SharedRanks
from trtllm_pt.bench import all_reduce, compare
from trtllm_pt.bench.collectives import EngineAllReduce
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.jobs import join_ranks, shared_ranks, sharing_ranks
from trtllm_pt.bench.static_batch import Case
from trtllm_pt.bench.this_machine import Weights, measure_machine
from trtllm_pt.planner.machine import Machine, all_reduces_from_json

if TYPE_CHECKING:
    from mpi4py import MPI

_SIZES = all_reduce.sizes_in_range(64, 1 << 18, 4)
_SAMPLES = 2  # of the memory bandwidth, in every round


class Probe:
    """Measures this machine between batches. Rank 0 starts a measurement, and the other ranks follow it."""

    def __init__(self, comm: MPI.Intracomm, shared: SharedRanks) -> None:
        self._comm = comm.Dup()
        self._op, self._weights = EngineAllReduce(self._comm, shared), Weights(self._comm)
        self.channel = shared.channel(self._comm, self._measure)
        self._first = measure_machine(self._comm, self._all_reduces(), self._weights)

    def ask(self) -> Machine:
        """Measure the machine. Only rank 0 calls this."""
        self.channel.order()
        return self._measure()

    def _measure(self) -> Machine:
        """Measure what changes fast. The rest stays as it was measured at the start."""
        together, alone = self._weights.bandwidths(_SAMPLES)
        return replace(
            self._first,
            memory_bandwidth=together,
            memory_bandwidth_alone=alone,
            all_reduce=all_reduces_from_json(self._all_reduces(), "measured"),
        )

    def _all_reduces(self) -> list[dict[str, Any]]:
        *_, series = all_reduce.measure(self._comm, [self._op], _SIZES, 1)
        curves: list[dict[str, Any]] = all_reduce.report(series, self._comm.size)["all_reduce"]
        return curves


def visit(contenders: Sequence[Contender], case: Case, rounds: int, threads: int, seed: int) -> dict[str, Any] | None:
    """Measure one link; every rank calls this.

    Rank 0 gets `machines`, with one machine per round, and `batches`, with one batch per round of every contender.
    The other ranks get None.
    """
    comm = join_ranks(None)
    torch.set_num_threads(threads)
    shared = shared_ranks([each.facts for each in contenders])
    assert shared is not None, "netlab builds the engines that it compares"
    shared.load(comm, contenders[0].facts.folder)
    probe = Probe(comm, shared)
    machines: list[dict[str, Any]] = []
    samples: compare.Samples = {case: []}
    with sharing_ranks([each.facts for each in contenders], threads, case.batch_size, [probe.channel]) as runtimes:
        if runtimes is None:
            return None
        for taken in compare.measure(runtimes, contenders, [case], rounds, seed):
            samples.update(taken)
            machines.append(probe.ask().to_json())
        probe.channel.stop()
    batches = {each.name: [asdict(taken[index]) for taken in samples[case]] for index, each in enumerate(contenders)}
    return {"machines": machines, "batches": batches}
