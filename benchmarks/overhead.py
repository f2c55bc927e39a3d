"""Measure what the runtime adds to a decode step: rank 0's time from the end of one engine call to the next one.

The output head and the collective that gathers the logits do not count. The engine call contains the other matrix
products and the all-reduces.

    python benchmarks/overhead.py ENGINES [--batches 1 4 16] [--prompts 128] [--steps 64] [--rounds 2] [--json]
    mpirun -n 2 python benchmarks/overhead.py ENGINES …

The figures are medians in microseconds over the steps in which the whole batch decodes. `overhead` reads the clock
around the engine call, the head and the gather only. Its parts are measured in separate rounds, which take longer
because they read the clock more often. `gather` includes the wait for the slowest rank. `rest` is the time between the
parts: in LLM, in poll, and for reading the clock.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from trtllm_pt import LLM, SamplingParams
from trtllm_pt.backends.embedded.runtime import EmbeddedRuntime
from trtllm_pt.batching import runtime as batching
from trtllm_pt.bench.results import median
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table

Case = tuple[int, int, str]  # batch, prompt, sampling
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {}, "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9}}
PARTS = ("schedule", "write", "send", "engine", "head", "gather", "sample", "take", "rest")


class Clock:
    """Replaces the engine's loader, whose call is where one step ends and the next one starts.

    It does little, because every further function costs microseconds while the caches are cold.
    """

    def __init__(self, runtime: EmbeddedRuntime) -> None:
        self.runtime = runtime
        self.engine = runtime.session.engine._loader.boxed_run
        runtime.session.engine._loader = self  # type: ignore[assignment]
        self.head = runtime.session.engine.logits
        runtime.session.engine.logits = self.logits  # type: ignore[method-assign]
        if runtime.session.world.size > 1:
            self.gather = runtime.session.world.gather_logits
            runtime.session.world.gather_logits = self.gather_logits  # type: ignore[method-assign]
        self.begin(0)

    def begin(self, batch: int) -> None:
        self.batch, self.steps, self.decoding, self.ended = batch, list[float](), False, 0.0

    def logits(self, stream: Any) -> Any:
        return self.outside(self.head, stream)

    def gather_logits(self, logits: Any) -> Any:
        return self.outside(self.gather, logits)

    def outside(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call a function whose time is not part of the overhead."""
        began = time.perf_counter()
        result = function(argument)
        self.ended += time.perf_counter() - began
        return result

    def boxed_run(self, inputs: list[Any]) -> Any:
        now = time.perf_counter()
        decoding = len(inputs[0]) == len(inputs[1]) == self.batch
        if decoding and self.decoding:
            self.steps.append(now - self.ended)
        self.decoding = decoding
        outputs = self.engine(inputs)
        self.ended = time.perf_counter()
        return outputs


class Parts:
    """A context manager that times the functions of a step. Time in a nested function counts for that one only."""

    def __init__(self, runtime: EmbeddedRuntime, batch: int) -> None:
        session, scheduler = runtime.session, runtime._scheduler
        self.batch, self.steps, self.decoding = batch, list[dict[str, float]](), False
        self.spent, self.part, self.since = dict.fromkeys(PARTS, 0.0), "rest", 0.0
        self.functions = (
            (scheduler, "schedule", "schedule"),
            (session.message, "write", "write"),
            (session.world, "send_plan", "send"),
            (session.engine._loader, "boxed_run", "engine"),
            (session.engine, "logits", "head"),
            (session.world, "gather_logits", "gather"),
            (batching, "sample", "sample"),
            (scheduler, "finish_step", "take"),
        )

    def __enter__(self) -> Parts:
        self.whole = [getattr(owner, name) for owner, name, _ in self.functions]
        for (owner, name, part), function in zip(self.functions, self.whole, strict=True):
            setattr(owner, name, self.timed(function, part))
        return self

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), function in zip(self.functions, self.whole, strict=True):
            setattr(owner, name, function)

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            outer = self.enter(part)
            if part == "engine":
                self.next_step(*arguments)
            try:
                return function(*arguments)
            finally:
                self.enter(outer)

        return call

    def enter(self, part: str) -> str:
        now = time.perf_counter()
        self.spent[self.part] += now - self.since
        outer, self.part, self.since = self.part, part, now
        return outer

    def next_step(self, inputs: list[Any]) -> None:
        decoding = len(inputs[0]) == len(inputs[1]) == self.batch
        if decoding and self.decoding:
            self.steps.append(self.spent)
        self.decoding, self.spent, self.since = decoding, dict.fromkeys(PARTS, 0.0), time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--threads", type=int, help="threads of a rank")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128])
    parser.add_argument("--steps", type=int, default=64, help="decode steps per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    draw = random.Random(0)
    cases = [(b, p, name) for p in args.prompts for b in args.batches for name in SAMPLINGS]
    whole: dict[Case, list[float]] = {case: [] for case in cases}
    parts: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    with LLM(args.engines, threads=args.threads) as llm:
        vocabulary, runtime = llm.manifest.model.vocab_size, cast(EmbeddedRuntime, llm._runtime)
        prompts = [[draw.randrange(vocabulary) for _ in range(max(args.prompts))] for _ in range(max(args.batches))]
        llm.generate(prompts, SamplingParams(max_tokens=1))  # from here on, all but their last page is cached
        clock = Clock(runtime)
        for case in tqdm(cases * args.rounds, desc="overhead", leave=False):
            batch, length, name = case
            given = [tokens[:length] for tokens in prompts[:batch]]
            sampling = SamplingParams(max_tokens=args.steps + 2, end_id=-1, **SAMPLINGS[name])
            clock.begin(batch)
            llm.generate(given, sampling)
            whole[case] += clock.steps
            with Parts(runtime, batch) as timed:
                llm.generate(given, sampling)
            parts[case] += timed.steps
    rows = []
    for case in cases:
        batch, length, name = case
        row: dict[str, object] = {"batch": batch, "prompt": length, "sampling": name, "steps": len(whole[case])}
        row["overhead"] = median(whole[case]) * 1e6
        rows.append(row | {part: median([step[part] for step in parts[case]]) * 1e6 for part in PARTS})
    if args.json:
        print(json.dumps({"engine": str(args.engines), "ranks": llm.manifest.ranks, "microseconds": rows}))
    else:
        print(table([[f"{v:.0f}" if isinstance(v, float) else v for v in row.values()] for row in rows], list(rows[0])))


if __name__ == "__main__":
    run_script(main)
