"""Measure rank 0's own work where very many requests wait or pass, without a model.

    python benchmarks/backlog.py [--queued 10000] [--trace 100000] [--json] [--plot FILE]

The runtime, its scheduler and its sampling are those of the embedded engine; the engine is simulated: each step returns
random logits at once. The table shows the mean microseconds of processor time of each tenth of a series, which stay
flat if a request costs the same however many wait and have passed:

    submit     `--queued` requests are submitted at once
    step       steps until all of these have finished
    cancel     as many are submitted again, in three priorities, and all cancelled in random order
    trace      `--trace` requests arrive one after the other, at 0.8 of the rate that the scheduler can serve; a step
               includes the submissions before it

Prompts have 16 to about 200 tokens, every fourth one a prefix that others have, too, and outputs 16 in the mean.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_pt.backends.embedded.paged_scheduler import PagedScheduler
from trtllm_pt.backends.embedded.scores import score
from trtllm_pt.backends.embedded.step_plan import StepMessage, StepPlan
from trtllm_pt.batching.grammars import Grammars
from trtllm_pt.batching.runtime import BatchingRuntime
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError
from trtllm_pt.plotting import check_plot, pyplot, save
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request, SamplingParams

BATCH, STEP_TOKENS, CHUNK, PAGES = 64, 512, 256, 2048
VOCAB, LONGEST, LONGEST_PROMPT = 64, 512, 384
OUTPUT, PROMPT, PREFIX = 16, 48, 64  # mean lengths of outputs and of prompts, and the length of a shared prefix
RATE = 0.8 * BATCH / OUTPUT  # requests per step
PARTS = 10
SERIES = ("submit", "step", "cancel", "trace")


class SimulatedEngine:
    """Rank 0 of an engine that takes no time. It writes each step's message, as a real one does."""

    pids, hosts, scores = [0], [""], ()
    world = SimpleNamespace(hops=0)

    def __init__(self) -> None:
        self._message = StepMessage(BATCH, STEP_TOKENS, LONGEST)
        self._logits = np.random.default_rng(0).normal(size=(BATCH + 997, VOCAB)).astype(np.float32)
        self._row = 0

    def run(self, plan: StepPlan) -> npt.NDArray[np.float32]:
        self._message.write(plan)
        self._row = (self._row + len(plan.last)) % 997
        return self._logits[self._row : self._row + len(plan.last)]

    def close(self) -> None: ...


def runtime() -> BatchingRuntime[StepPlan]:
    limits = Limits(vocab_size=VOCAB, max_seq_len=LONGEST, max_input_len=LONGEST_PROMPT)
    sizes = {"max_batch_size": BATCH, "max_num_tokens": STEP_TOKENS, "chunk": CHUNK, "num_pages": PAGES}
    engine: Any = SimulatedEngine()
    return BatchingRuntime(engine, PagedScheduler(limits, **sizes), score, Grammars(Path(), VOCAB))


def requests(count: int, priorities: int = 1) -> list[Request]:
    draw = np.random.default_rng(1)
    prefixes = draw.integers(0, VOCAB, (16, PREFIX))
    found = []
    for number in range(count):
        prompt = draw.integers(0, VOCAB, min(16 + int(draw.exponential(PROMPT - 16)), LONGEST_PROMPT - PREFIX))
        if number % 4 == 0:
            prompt = np.concatenate([prefixes[number // 4 % len(prefixes)], prompt])
        tokens = min(1 + int(draw.exponential(OUTPUT)), LONGEST - LONGEST_PROMPT)
        sampling = SamplingParams(max_tokens=tokens, end_id=-1, priority=number % priorities)
        found.append(Request(id=number, token_ids=tuple(prompt.tolist()), sampling=sampling))
    return found


def timed(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Return the microseconds of processor time of each call."""
    gc.collect()
    gc.freeze()  # the prepared requests are not rank 0's
    found = []
    for call in calls:
        began = time.thread_time()
        call()
        found.append(1e6 * (time.thread_time() - began))
    gc.unfreeze()
    return found


def until_idle(engine: BatchingRuntime[StepPlan]) -> Iterator[Callable[[], object]]:
    while engine.busy:
        yield lambda: engine.poll(0.0)


def arriving(engine: BatchingRuntime[StepPlan], trace: list[Request]) -> Iterator[Callable[[], object]]:
    """Yield steps until all requests of the trace have been submitted, RATE of them before each step."""
    draw = np.random.default_rng(2)
    place = 0

    def step(new: list[Request]) -> None:
        for each in new:
            engine.submit(each)
        engine.poll(0.0)

    while place < len(trace):
        count = int(draw.poisson(RATE))
        yield lambda new=trace[place : place + count]: step(new)
        place += count


def measure(queued: int, trace: int) -> dict[str, list[float]]:
    """Return the microseconds of every call of each series."""
    engine, found, draw = runtime(), {}, np.random.default_rng(3)
    found["submit"] = timed([lambda each=each: engine.submit(each) for each in requests(queued)])
    found["step"] = timed(until_idle(engine))
    for each in requests(queued, priorities=3):
        engine.submit(each)
    found["cancel"] = timed([lambda id=int(id): engine.cancel(id) for id in draw.permutation(queued)])
    engine.poll(0.0)
    found["trace"] = timed(arriving(engine, requests(trace)))
    engine.close()
    return found


def tenths(microseconds: list[float]) -> list[float]:
    return [float(part.mean()) for part in np.array_split(np.array(microseconds), PARTS)]


def plot(rows: dict[str, list[float]], path: Path) -> None:
    figure, axis = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for name, means in rows.items():
        axis.plot(range(1, PARTS + 1), means, "o-", label=name)
    axis.set(xlabel="tenth of the series", ylabel="microseconds per call", yscale="log", xticks=range(1, PARTS + 1))
    axis.legend(fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=10_000, help="requests that are submitted at once")
    parser.add_argument("--trace", type=int, default=100_000, help="requests that arrive one after the other")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the table as PNG or SVG")
    args = parser.parse_args()
    if args.queued < 2 * PARTS or args.trace < 100 * PARTS:
        raise UsageError(f"--queued must be at least {2 * PARTS} and --trace at least {100 * PARTS}")
    if args.plot is not None:
        check_plot(args.plot)
    found = measure(args.queued, args.trace)
    rows = {name: tenths(found[name]) for name in SERIES}
    if args.json:
        calls = {name: len(found[name]) for name in SERIES}
        print(json.dumps({"queued": args.queued, "trace": args.trace, "calls": calls, "microseconds": rows}))
    else:
        heads = ["us per", "calls", *(f"{number}/{PARTS}" for number in range(1, PARTS + 1))]
        print(table([[name, len(found[name]), *(f"{v:.1f}" for v in rows[name])] for name in SERIES], heads))
    if args.plot is not None:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_script(main)
