"""Which ops a decode step and a prefill spend their time in: an engine of one rank, its calls alone.

    python benchmarks/step_ops.py ENGINES [--batches 1 16] [--context 128] [--prompt 512] [--threads 2] [--json]

Each op's share of the calls' time, as torch's profiler has it, products by their weights (tracks x outputs x inputs).
`rest` is what lies between the ops: calls, memory for results, the additions of residuals.
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

_STEPS = {True: 100, False: 5}  # of a decode step, of a prefill
_PRODUCTS = ("linear", "linear_swiglu", "head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="sequences of a decode step")
    parser.add_argument("--context", type=int, default=128, help="tokens that a step's sequences have")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
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
    engine = open_session(folder, threads=threads).engine
    if engine.manifest.ranks > 1:
        raise UsageError(f"{folder} has {engine.manifest.ranks} ranks: an op's wait for others would count as its work")
    if engine.pages < pages:
        raise UsageError(f"these batches need a KV cache of {pages * PAGE} tokens, {folder} has {engine.pages * PAGE}")
    return engine


def inputs(batch: int, context: int, new: int) -> tuple[Tensor, ...]:
    """Of EmbeddedEngine.run: `batch` sequences of `context` tokens, and `new` more of each."""
    pages = torch.arange(batch * pages_for(context + new)).view(batch, -1)
    offsets = torch.arange(batch + 1) * new
    return torch.arange(batch * new) % 64, torch.full((batch,), context), offsets, pages, offsets[1:] - 1


def measured(engine: EmbeddedEngine, batch: tuple[Tensor, ...], steps: int) -> dict[str, float]:
    """Microseconds of a call, `whole`, and of its ops, the longest first."""
    for _ in range(2):
        engine.run(*batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        began = time.perf_counter()
        for _ in range(steps):
            engine.run(*batch)
        whole = (time.perf_counter() - began) * 1e6 / steps
    spent: dict[str, float] = defaultdict(float)
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key.startswith("trtllm_pt::"):
            spent[label(event)] += event.cpu_time_total / steps
    ordered = dict(sorted(spent.items(), key=lambda op: -op[1]))
    return {"whole": whole, **ordered, "rest": whole - sum(spent.values())}


def label(event: Any) -> str:
    """An op's name; a product's with its weights, packed [.., tiles of 16, inputs / e, 16 * e]."""
    name: str = event.key.removeprefix("trtllm_pt::")
    if name not in _PRODUCTS:
        return name
    *lead, tiles, steps, line = event.input_shapes[1]
    return " ".join([name, "x".join(map(str, [*lead, tiles * 16, steps * line // 16]))])


if __name__ == "__main__":
    run_script(main)
