"""Measure time and memory of the embedded engine as one thing grows: batch, context, tracks, ranks, experts or streams.

    python benchmarks/growth.py [--axes batch context …] [--threads 2] [--steps 24] [--rounds 5] [--json] [--plot FILE]

Builds small models with random weights and runs each in a process of its own. A row is a decode step at one value of
one axis, with everything else as in the other rows: 1 sequence, 128 tokens of context, 1 track, 1 rank of all threads,
no experts. Tracks are added at the same width, so 8 tracks have 8 times the weights; the model whose ranks grow has 8
tracks and one thread for each rank. Two experts are chosen of any number. Streams are requests that are always in
flight, of which at most 64 run at a time: each has a prompt of 32 tokens and gets 16, and the next one follows it.

`ms` is the median time of a step (of streams: the time over all steps), `power` the exponent with which it grew since
the row before: 1 is linear, 0 is flat. `tokens/s` counts all sequences. `memory` is the largest peak of a rank, with
the libraries (about 400 MB), mapped weights and the KV cache. `python benchmarks/backlog.py` measures queues.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trtllm_pt import BuildOptions, SamplingParams, build, init
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.bench.results import median
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import RunError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.plotting import check_plot, pyplot, save
from trtllm_pt.requests.messages import Request, Runtime
from trtllm_pt.runtime.llm import start_runtime

BATCH, CONTEXT = 64, 32768
STREAM_PROMPT, STREAM_TOKENS = 32, 16
DENSE = ModelConfig(
    num_layers=2,
    hidden_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    intermediate_size=768,
    vocab_size=4096,
    max_position_embeddings=2 * CONTEXT,
)
COLUMNS = ("axis", "value", "ms", "power", "tokens/s", "memory (MB)")


@dataclass(frozen=True)
class Case:
    """A row: the engine, and the sequences that decode in it. streams: requests in flight, instead of a batch."""

    axis: str
    value: int
    config: ModelConfig = DENSE
    ranks: int = 1
    batch: int = 1
    context: int = 128
    streams: int = 0

    @property
    def engine(self) -> tuple[ModelConfig, int]:
        return self.config, self.ranks


def with_tracks(tracks: int) -> ModelConfig:
    return replace(DENSE, tracks=tracks, schedule="pt", block_depth=2)


def with_experts(experts: int) -> ModelConfig:
    chosen = {"experts_per_token": 2, "moe_intermediate_size": 384}
    return replace(DENSE, ffn_pattern=("moe",), num_experts=experts, **chosen)


AXES = {
    "batch": [Case("batch", n, batch=n) for n in (1, 2, 4, 8, 16, 32, BATCH)],
    "context": [Case("context", n, context=n) for n in (128, 512, 2048, 8192, CONTEXT)],
    "streams": [Case("streams", n, streams=n) for n in (1, 4, 16, 64, 256)],
    "tracks": [Case("tracks", n, with_tracks(n)) for n in (1, 2, 4, 8)],
    "ranks": [Case("ranks", n, with_tracks(8), ranks=n) for n in (1, 2, 4, 8)],
    "experts": [Case("experts", n, with_experts(n)) for n in (4, 16, 64)],
}


def build_engine(config: ModelConfig, ranks: int, folder: Path) -> None:
    init(config, folder / "checkpoint", ranks=ranks)
    options = BuildOptions(max_batch_size=BATCH, max_seq_len=CONTEXT + 256)
    build(folder / "checkpoint", folder / "engine", "embedded", options)


def run(folder: Path, threads: int, cases: Sequence[Case], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each case of one engine, the cheapest first, because the peak of memory only grows."""
    manifest = read_engine(folder)
    runtime = start_runtime(folder, manifest, threads, CONTEXT + 256 * BATCH)
    rows = []
    try:
        for case in cases:
            draw = random.Random(case.value)
            if case.streams:
                seconds, rate = in_flight(runtime, case, draw)
            else:
                decode(runtime, case, 2, draw)
                seconds = median([decode(runtime, case, steps, draw) for _ in range(rounds)])
                rate = case.batch / seconds
            memory = (runtime.stats().peak_memory_bytes or 0) / 1e6
            rows.append(
                {"axis": case.axis, "value": case.value, "ms": 1e3 * seconds, "tokens/s": rate} | {COLUMNS[-1]: memory}
            )
    finally:
        runtime.close()
    return rows


def decode(runtime: Runtime, case: Case, steps: int, draw: random.Random) -> float:
    """Return the median seconds of a step in which all sequences of a batch decode.

    All prompts of a length are the same, up to the last 16 tokens, so that most of a long one is in the KV cache.
    """
    common = random.Random(0)
    start = [common.randrange(4, DENSE.vocab_size) for _ in range(case.context - 16)]
    sampling = SamplingParams(max_tokens=steps + 1, end_id=-1)
    found = [0] * case.batch
    for number in range(case.batch):
        end = [draw.randrange(4, DENSE.vocab_size) for _ in range(16)]
        runtime.submit(Request(id=number, token_ids=(*start, *end), sampling=sampling))
    stamps: list[float] = []
    while len(stamps) <= steps:
        for message in runtime.poll(10.0):
            if message.error is not None:
                raise RunError(message.error)
            found[message.id] += len(message.token_ids)
        stamps += [time.perf_counter()] * (min(found) - len(stamps))
    return median([after - before for before, after in pairwise(stamps)])


def in_flight(runtime: Runtime, case: Case, draw: random.Random) -> tuple[float, float]:
    """Return the seconds per step and the tokens per second with a number of requests always in flight."""
    total = max(2 * case.streams, 64)
    sampling = SamplingParams(max_tokens=STREAM_TOKENS, end_id=-1)

    def submit(number: int) -> None:
        prompt = tuple(draw.randrange(4, DENSE.vocab_size) for _ in range(STREAM_PROMPT))
        runtime.submit(Request(id=number, token_ids=prompt, sampling=sampling))

    for number in range(case.streams):
        submit(number)
    submitted, done, before, began = case.streams, 0, runtime.stats().steps, time.perf_counter()
    while done < total:
        for message in runtime.poll(10.0):
            if message.finish_reason is not None:
                done += 1
                if submitted < total:
                    submit(submitted)
                    submitted += 1
    seconds = time.perf_counter() - began
    return seconds / (runtime.stats().steps - before), total * STREAM_TOKENS / seconds


def measure(cases: Sequence[Case], threads: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as top, tqdm(total=len(cases), unit="row") as progress:
        for number, (engine, group) in enumerate(groupby(cases, lambda case: (case.axis, case.engine))):
            folder, same = Path(top) / str(number), list(group)
            config, ranks = engine[1]
            build_engine(config, ranks, folder)
            each = 1 if same[0].axis == "ranks" else threads
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                rows += process.submit(run, folder / "engine", each, same, steps, rounds).result()
            progress.update(len(same))
    for before, row in zip([None, *rows], rows, strict=False):
        follows = before is not None and before["axis"] == row["axis"]
        row["power"] = (
            math.log(row["ms"] / before["ms"]) / math.log(row["value"] / before["value"]) if follows else None
        )
    return rows


def cells(row: dict[str, Any]) -> list[object]:
    formats = {"ms": ".2f", "power": ".2f", "tokens/s": ".0f", COLUMNS[-1]: ".0f"}
    return ["" if row[name] is None else format(row[name], formats.get(name, "")) for name in COLUMNS]


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    figure, axis = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for name, group in groupby(rows, lambda row: row["axis"]):
        points = list(group)
        axis.plot([row["value"] for row in points], [row["ms"] for row in points], "o-", label=name)
    axis.set(xlabel="value of the axis", ylabel="milliseconds per step", xscale="log", yscale="log")
    axis.legend(fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="what grows [all]")
    parser.add_argument("--most", type=int, default=CONTEXT, help="leave out larger values of every axis")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of one rank, and the most ranks")
    parser.add_argument("--steps", type=int, default=24, help="decode steps of a sample")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each row")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the times as PNG or SVG")
    args = parser.parse_args()
    if args.plot is not None:
        check_plot(args.plot)
    cases = [
        case for axis in args.axes for case in AXES[axis] if case.value <= args.most and case.ranks <= args.threads
    ]
    rows = measure(cases, args.threads, args.steps, args.rounds)
    print(json.dumps({"rows": rows}) if args.json else table([cells(row) for row in rows], list(COLUMNS)))
    if args.plot is not None:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_script(main)
