"""What the runtime adds to a decode step: all that rank 0 does from the end of one engine call to the start of the
next. (The call holds the products and the boundaries' collectives.)

    python benchmarks/overhead.py ENGINES [--steps 64] [--rounds 4] [--json]         one rank
    mpirun -n 2 python benchmarks/overhead.py ENGINES …

Medians in microseconds over the steps in which the whole batch decodes; every other round the parts are timed, too.
`gather` holds the wait for the slowest rank; `rest` is what lies between the parts: LLM, poll, and the clock itself.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trtllm_pt import LLM, SamplingParams
from trtllm_pt.bench.percentiles import median
from trtllm_pt.cli.text import table
from trtllm_pt.runtime import embedded

BATCHES, PROMPTS = (1, 4, 16), (128, 512)
SAMPLINGS: dict[str, dict[str, Any]] = {"greedy": {}, "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9}}
PARTS = ("schedule", "write", "send", "engine", "gather", "sample", "take", "rest")


class Clock:
    """Wraps the functions that do the parts of a step; what one calls of another is the other's time."""

    def __init__(self, runtime: embedded.EmbeddedRuntime) -> None:
        session, scheduler = runtime.session, runtime._scheduler
        self.batch, self.steps, self.in_parts = 0, list[dict[str, float]](), False
        self.spent, self.part, self.since, self.decoding = dict.fromkeys(PARTS, 0.0), "rest", 0.0, False
        self.engine = session.engine._loader.boxed_run
        session.engine._loader = self  # type: ignore[assignment]
        for owner, name, part in (
            (scheduler, "schedule", "schedule"),
            (session.message, "write", "write"),
            (session.world, "send_plan", "send"),
            (session.world, "gather_logits", "gather"),
            (embedded, "sample", "sample"),
            (scheduler, "finish_step", "take"),
        ):
            setattr(owner, name, self.timed(getattr(owner, name), part))

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not self.in_parts:
                return function(*arguments)
            outer = self.enter(part)
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

    def boxed_run(self, inputs: list[Any]) -> Any:
        """The engine call: before it one step ends, the next begins."""
        outer = self.enter("engine")
        decoding = len(inputs[0]) == len(inputs[1]) == self.batch
        if decoding and self.decoding:
            self.steps.append(self.spent)
        self.decoding, self.spent = decoding, dict.fromkeys(PARTS, 0.0)
        self.since = time.perf_counter()
        outputs = self.engine(inputs)
        self.enter(outer)
        return outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--threads", type=int, help="per rank")
    parser.add_argument("--steps", type=int, default=64, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    draw = random.Random(0)
    found: dict[tuple[int, int, str], tuple[list[dict[str, float]], list[dict[str, float]]]] = {}
    with LLM(args.engines, threads=args.threads) as llm:
        vocabulary = llm.manifest.model.vocab_size
        prompts = [[draw.randrange(vocabulary) for _ in range(max(PROMPTS))] for _ in range(max(BATCHES))]
        llm.generate(prompts, SamplingParams(max_tokens=1))  # from here on they are known, but for their last page
        clock = Clock(llm._runtime)  # type: ignore[arg-type]
        cases = [(b, p, name) for p in PROMPTS for b in BATCHES for name in SAMPLINGS]
        for number, (batch, prompt, name) in enumerate(tqdm(cases * args.rounds, desc="overhead", leave=False)):
            clock.in_parts = number // len(cases) % 2 == 1
            clock.batch, clock.steps = batch, found.setdefault((batch, prompt, name), ([], []))[clock.in_parts]
            given = [tokens[:prompt] for tokens in prompts[:batch]]
            llm.generate(given, SamplingParams(max_tokens=args.steps + 2, end_id=-1, **SAMPLINGS[name]))
    rows = []
    for (batch, prompt, name), (whole, parts) in found.items():
        row: dict[str, object] = {"batch": batch, "prompt": prompt, "sampling": name, "steps": len(whole)}
        row["overhead"] = median([sum(step.values()) - step["engine"] for step in whole]) * 1e6
        rows.append(row | {part: median([step[part] for step in parts]) * 1e6 for part in PARTS})
    if args.json:
        print(json.dumps({"engine": str(args.engines), "ranks": llm.manifest.ranks, "microseconds": rows}))
    else:
        print(table([[f"{v:.0f}" if isinstance(v, float) else v for v in row.values()] for row in rows], list(rows[0])))


if __name__ == "__main__":
    main()
