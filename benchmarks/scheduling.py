"""Compare rank 0's own work per decode step in the embedded engine and in native TensorRT engines, without a model.

    python benchmarks/scheduling.py [--batches 1 4 16] [--steps 2000] [--vocab 32000] [--json]

Both get the same requests, and logits that are the same in every step. `schedule` makes the plan, `write` the message
to the other ranks, `sample` draws the tokens (greedy), and `take` gives them to the requests. The figures are medians
in microseconds over the steps in which the whole batch decodes. Between the steps, as much memory is read as the
weights of a small model, because a step of the embedded engine leaves none of rank 0's data in the CPU's caches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trtllm_pt.backends.embedded.paged_scheduler import PagedScheduler
from trtllm_pt.backends.embedded.step_plan import StepMessage as PagedMessage
from trtllm_pt.backends.tensorrt.slot_plan import StepMessage as SlotMessage
from trtllm_pt.backends.tensorrt.slot_scheduler import SlotScheduler
from trtllm_pt.batching.sampling import sample
from trtllm_pt.batching.scheduler import Scheduler
from trtllm_pt.bench.results import median
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request, SamplingParams

PARTS = ("schedule", "write", "sample", "take")
PROMPT, CHUNK, SLOTS = 16, 256, 16
EVICTED = 64 << 20  # bytes that are read between two steps


def embedded(limits: Limits) -> tuple[Scheduler[Any], Callable[[Any], None]]:
    pages = -(-limits.max_seq_len // 16) * SLOTS
    scheduler = PagedScheduler(limits, max_batch_size=SLOTS, max_num_tokens=2048, num_pages=pages, chunk=CHUNK)
    return scheduler, PagedMessage(SLOTS, 2048, limits.max_seq_len).write


def tensorrt(limits: Limits) -> tuple[Scheduler[Any], Callable[[Any], None]]:
    sizes = {"slots": SLOTS, "slot_size": limits.max_seq_len, "chunk": 2048, "chunk_beside": CHUNK, "scored_chunk": 64}
    room = SlotMessage.room_for(SLOTS, 2048, 64)
    return SlotScheduler(limits, **sizes), SlotMessage(torch.zeros(room, dtype=torch.int32)).write


ENGINES = {"embedded": embedded, "tensorrt": tensorrt}


def measure(engine: str, batch: int, steps: int, vocab: int) -> dict[str, float]:
    """Return the median microseconds of each part, and of their sum."""
    tokens = steps + 2 * batch  # the first request is this many steps ahead of the last one, if prompts run one by one
    limits = Limits(vocab_size=vocab, max_seq_len=PROMPT + tokens + 1, max_input_len=PROMPT)
    scheduler, write = ENGINES[engine](limits)
    logits = np.random.default_rng(0).normal(size=(SLOTS, vocab)).astype(np.float32)
    evicting = np.ones(EVICTED // 8)
    for number in range(batch):
        sampling = SamplingParams(max_tokens=tokens, end_id=-1)
        scheduler.add(Request(id=number, token_ids=(number,) * PROMPT, sampling=sampling))
    found: list[list[float]] = []
    while not scheduler.idle:
        evicting.sum()
        times = [time.perf_counter()]
        plan = scheduler.schedule()
        times.append(time.perf_counter())
        write(plan)
        times.append(time.perf_counter())
        sampled = sample(logits[: len(scheduler.wanted)], scheduler.wanted)
        times.append(time.perf_counter())
        scheduler.finish_step(sampled)
        times.append(time.perf_counter())
        if len(scheduler.wanted) == batch:
            found.append([b - a for a, b in itertools.pairwise(times)])
    parts = {part: 1e6 * median(list(column)) for part, column in zip(PARTS, zip(*found, strict=True), strict=True)}
    return parts | {"sum": 1e6 * median([sum(step) for step in found])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, SLOTS], choices=range(1, SLOTS + 1))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        {"batch": batch, "engine": engine, **measure(engine, batch, args.steps, args.vocab)}
        for batch in args.batches
        for engine in ENGINES
    ]
    if args.json:
        print(json.dumps({"microseconds": rows}))
    else:
        print(table([[f"{v:.1f}" if isinstance(v, float) else v for v in row.values()] for row in rows], list(rows[0])))


if __name__ == "__main__":
    run_script(main)
