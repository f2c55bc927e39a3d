"""One visit to a link, on all of its ranks: this machine as the planner reads it, then engines against each other.

The machine is described once before and once after the comparison, for what it does changes within a minute where its
memory is shared with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from trtllm_pt.bench import all_reduce, compare
from trtllm_pt.bench.batch import Case
from trtllm_pt.bench.collectives import EngineOp
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.launching import join_ranks
from trtllm_pt.bench.running import sharing_ranks
from trtllm_pt.bench.this_machine import measure_machine
from trtllm_pt.kernels.build import LIBRARY
from trtllm_pt.kernels.library import load

_SIZES = all_reduce.sizes_in_range(64, 1 << 20, 4)
_ROUNDS = 2  # of the all-reduces, before and after


def visit(contenders: Sequence[Contender], case: Case, rounds: int, threads: int, seed: int) -> dict[str, Any] | None:
    """On every rank. Rank 0: `machines`, before and after, and `batches`, of every contender one per round."""
    comm = join_ranks(None)
    torch.set_num_threads(threads)
    load(contenders[0].facts.folder / LIBRARY)

    def machine() -> dict[str, Any]:
        *_, series = all_reduce.measure(comm, [EngineOp(comm)], _SIZES, _ROUNDS)
        return measure_machine(comm, all_reduce.report(series, comm.size)["all_reduce"]).to_json()

    before = machine()
    with sharing_ranks([each.facts for each in contenders], threads, case.batch_size) as runtimes:
        if runtimes is not None:
            *_, samples = compare.measure(runtimes, contenders, [case], rounds, seed)
    after = machine()
    if comm.rank:
        return None
    batches = {each.name: [asdict(taken[index]) for taken in samples[case]] for index, each in enumerate(contenders)}
    return {"machines": [before, after], "batches": batches}
