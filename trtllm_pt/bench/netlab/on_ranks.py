"""One visit to a link, on all of its ranks: engines against each other, and the machine as a planner sees it.

The machine is measured anew in every round, for what it does changes within seconds where its memory is shared with
others.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from trtllm_pt.backends.embedded.all_reduce_counts import Reduces
from trtllm_pt.backends.embedded.kernels.build import LIBRARY
from trtllm_pt.backends.embedded.kernels.library import load
from trtllm_pt.backends.embedded.rank_messages import RankMessages
from trtllm_pt.bench import all_reduce, compare
from trtllm_pt.bench.batch import Case
from trtllm_pt.bench.collectives import EngineOp
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.launching import join_ranks
from trtllm_pt.bench.running import sharing_ranks
from trtllm_pt.bench.this_machine import Weights, measure_machine
from trtllm_pt.planner.machine import Machine, all_reduces_from_json

_SIZES = all_reduce.sizes_in_range(64, 1 << 18, 4)
_SAMPLES = 2  # of the memory, in every round


class Probe:
    """Measures this machine between the engines' batches: on rank 0 by `ask`, and on the others as sessions follow."""

    def __init__(self, world: RankMessages) -> None:
        assert world.comm is not None
        self.world, self._comm = world, world.comm
        self._op, self._weights = EngineOp(self._comm), Weights(self._comm)
        self._message = memoryview(array("q", [1]))
        self._reduces = Reduces()
        self._first = measure_machine(self._comm, self._all_reduces(), self._weights)

    def ask(self) -> Machine:
        """Rank 0: the machine now."""
        self.world.send_plan(self._message)
        return self._measure()

    def run_next(self) -> bool:
        """Ranks but 0: takes part in what rank 0 asks for; False: it has stopped."""
        going_on = self.world.receive_plan(self._message)
        if going_on:
            self._measure()
        return going_on

    def close(self) -> None:
        """Rank 0: the others stop following."""
        self.world.send_plan(None)

    def _measure(self) -> Machine:
        """What changes fast; the rest as at first."""
        self._reduces.begin()  # no session is to count these all-reduces as its own
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
    """On every rank. Rank 0: `machines`, one per round, and `batches`, of every contender one per round."""
    comm = join_ranks(None)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    load(contenders[0].facts.folder / LIBRARY)
    probe = Probe(RankMessages(comm.Dup()))
    machines: list[dict[str, Any]] = []
    samples: compare.Samples = {case: []}
    with sharing_ranks([each.facts for each in contenders], threads, case.batch_size, [probe]) as runtimes:
        if runtimes is None:
            return None
        for taken in compare.measure(runtimes, contenders, [case], rounds, seed):
            samples.update(taken)
            machines.append(probe.ask().to_json())
        probe.close()
    batches = {each.name: [asdict(taken[index]) for taken in samples[case]] for index, each in enumerate(contenders)}
    return {"machines": machines, "batches": batches}
