"""Measure the time of each op in a decode step and in a prefill, for an engine of one rank.

    python benchmarks/step_ops.py ENGINES [--batches 1 16] [--context 128] [--prompt 512] [--threads 2] [--json]

The table shows each op's share of the time, as torch's profiler measures it. Products are listed by the shape of their
weights (tracks x outputs x inputs), and quantised ones by tracks x outputs. `rest` is the time between the ops: calls,
memory for results, and residual adds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.engine import EmbeddedEngine
from trtllm_pt.backends.embedded.kv_pages import pages_for
from trtllm_pt.backends.embedded.session import open_session
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError

_STEPS = {True: 100, False: 5}  # how often a decode step runs, and how often a prefill
_PRODUCTS = {"linear": 1, "linear_swiglu": 2, "head": 0}  # axes of the weights before their tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="sequences in a decode step")
    parser.add_argument("--context", type=int, default=128, help="tokens in the cache of each sequence")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = {f"decode {batch}": (batch, args.context, 1) for batch in args.batches}
    cases[f"prefill {args.prompt}"] = (1, 0, args.prompt)
    most = max(batch * pages_for(context + new) for batch, context, new in cases.values())
    engine = open_engine(args.engines, args.threads, most)
    found = {name: measured(engine, inputs(*case), _STEPS[case[2] == 1]) for name, case in cases.items()}
    if args.json:
        print(json.dumps({"engine": str(args.engines), "microseconds": found}))
        return
    ops = list(dict.fromkeys(op for case in found.values() for op in case if op != "whole"))
    rows = [["whole", *(f"{case['whole'] / 1e3:.2f} ms" for case in found.values())]]
    rows += [[op, *(f"{case.get(op, 0) / case['whole']:.1%}" for case in found.values())] for op in ops]
    print(table(rows, ["op", *found]))


def open_engine(folder: Path, threads: int | None, pages: int) -> EmbeddedEngine:
    """Load the engine. Raises UsageError if it has several ranks, or a KV cache of fewer pages."""
    engine = open_session(folder, threads=threads).engine
    if engine.manifest.ranks > 1:
        raise UsageError(f"{folder} has {engine.manifest.ranks} ranks, but step_ops needs an engine of 1 rank")
    if engine.pages < pages:
        raise UsageError(f"these batches need a KV cache of {pages * PAGE} tokens; {folder} has {engine.pages * PAGE}")
    return engine


def inputs(batch: int, context: int, new: int) -> tuple[Tensor, ...]:
    """Return the arguments of EmbeddedEngine.run for `batch` sequences with `context` tokens and `new` ones."""
    pages = torch.arange(batch * pages_for(context + new)).view(batch, -1)
    offsets = torch.arange(batch + 1) * new
    return torch.arange(batch * new) % 64, torch.full((batch,), context), offsets, pages, offsets[1:] - 1


def measured(engine: EmbeddedEngine, batch: tuple[Tensor, ...], steps: int) -> dict[str, float]:
    """Return the microseconds of a call as `whole`, then those of its ops, the longest first."""
    for _ in range(2):
        engine.logits(engine.run(*batch))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        began = time.perf_counter()
        for _ in range(steps):
            engine.logits(engine.run(*batch))
        whole = (time.perf_counter() - began) * 1e6 / steps
    spent: dict[str, float] = defaultdict(float)
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key.startswith("trtllm_pt::"):
            spent[label(event)] += event.cpu_time_total / steps
    ordered = dict(sorted(spent.items(), key=lambda op: -op[1]))
    return {"whole": whole, **ordered, "rest": whole - sum(spent.values())}


def label(event: Any) -> str:
    """Return an op's name, with the shape of a product's weights, packed as [.., tiles of 16, inputs / e, 16 * e], or
    quantised as [.., tiles of 16, bytes]."""
    name: str = event.key.removeprefix("trtllm_pt::")
    if name not in _PRODUCTS:
        return name
    shape = event.input_shapes[1]
    lead = _PRODUCTS[name]
    sizes = [*shape[:lead], shape[lead] * 16]
    if len(shape) == lead + 3:
        sizes.append(shape[-2] * shape[-1] // 16)
    return f"{name} {'x'.join(map(str, sizes))}"


if __name__ == "__main__":
    run_script(main)
