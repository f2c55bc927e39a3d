"""Perplexity of a dense model by the number of all-reduces that Sync-Point Drop removes.

    python benchmarks/spd_table.py MODEL_DIR --ranks 4 --train texts --test held-out [--seeds 3] [--json]
    python benchmarks/spd_table.py --show results.json

Each row is a number of dropped layers; columns are ways to choose and to repair them. Layers are chosen and repaired on
the texts --train, and every figure is the rise of perplexity on the texts --test. Random choices and distillation have
one run for each seed, and the table shows the mean and the range. Below it stands the set that `spd analyse` proposes.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.checkpoint.split import SplitSource
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.model.tensors import TensorSpec
from trtllm_pt.spd.analyse import analyse
from trtllm_pt.spd.blocks import Blocks
from trtllm_pt.spd.distil import distil
from trtllm_pt.spd.learning import Recipe
from trtllm_pt.spd.streams import Streams
from trtllm_pt.spd.sweep import Sweep
from trtllm_pt.spd.windows import read_windows


class PartlyRepaired:
    """A `Source` with the repaired weights of some layers only."""

    def __init__(self, dense: Source, repaired: Source, layers: Collection[int]) -> None:
        self._dense, self._repaired = dense, repaired
        self._prefixes = tuple(f"transformer.layers.{layer}." for layer in layers)
        self.config, self.dtype, self.tokenizer = dense.config, dense.dtype, dense.tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        source = self._repaired if self._prefixes and spec.name.startswith(self._prefixes) else self._dense
        return source.read(spec, track, dtype)


def nats(source: Source, windows: Tensor, sets: Sequence[Collection[int]], dtype: str) -> list[float]:
    """Return the mean nats per token with each of the sets of layers dropped, with products in `dtype`."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Streams(Blocks(source, getattr(torch, dtype)), windows, Path(folder)))
        return [float(each.mean()) for each in sweep.measure(sets, "measuring")]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    dense = open_source(args.model_dir)
    split, layers = SplitSource(dense, args.ranks), range(dense.config.num_layers)
    windows = read_windows(dense, [args.test], args.window, args.test_tokens)
    dtype = dense.dtype if args.dtype == "auto" else args.dtype
    common: dict[str, Any] = {"window": args.window, "dtype": dtype}
    found, _ = analyse(args.model_dir, args.ranks, [args.train], budget=args.budget, tokens=args.tokens, **common)
    order = [each.layer for each in sorted(found.layers, key=lambda each: (each.rise, -each.layer))]
    counts = [count for count in args.counts or range(1, len(layers) + 1) if count <= len(layers)]

    def first(count_from: Sequence[int]) -> list[Sequence[int]]:
        return [count_from[:count] for count in counts]

    shuffled = [np.random.default_rng(seed).permutation(len(layers)).tolist() for seed in range(args.seeds)]
    orders = [layers[::-1], order, *shuffled]
    sets = [some for each in orders for some in first(each)]
    base, proposed, *others = nats(split, windows, [(), found.dropped_layers, *sets], dtype)
    runs = [others[start : start + len(counts)] for start in range(0, len(others), len(counts))]
    ways: dict[str, list[list[float]]] = {"last layers": runs[:1], "random": runs[2:], "least sensitive": runs[1:2]}
    for way, group in (("distilled", ()), ("grouped, distilled", tuple(layers))):
        ways[way] = []
        for seed in range(args.seeds):
            recipe = Recipe(args.steps, args.learning_rate, args.batch_tokens, seed)
            with tempfile.TemporaryDirectory() as folder:
                output, learnt = Path(folder) / "repaired", sorted(order[: max(counts)])
                options = {"group": group and learnt, "recipe": recipe, "tokens": args.train_tokens, **common}
                distil(args.model_dir, output, args.ranks, [args.train], learnt, **options)
                repaired = open_source(output)
                each = [PartlyRepaired(split, repaired, some) for some in first(order)]
                run = [nats(source, windows, [some], dtype)[0] for source, some in zip(each, first(order), strict=True)]
            ways[way].append(run)
    return {
        "command": shlex.join(["python", "benchmarks/spd_table.py", *sys.argv[1:]]),
        "ranks": args.ranks,
        "perplexity": math.exp(base),
        "order": order,
        "counts": counts,
        "budget": found.budget,
        "proposed": found.dropped_layers,
        "proposed_rises": {
            "rise": found.rise,
            "rise_high": found.rise_high,
            "held_out": found.held_out_rise,
            "test": math.expm1(proposed - base),
        },
        "rises": {way: [[math.expm1(x - base) for x in run] for run in runs] for way, runs in ways.items()},
    }


def page(report: dict[str, Any]) -> str:
    rows = []
    for place, count in enumerate(report["counts"]):
        each = [[run[place] for run in runs] for runs in report["rises"].values()]
        rows.append([count, *map(_shown, each)])
    head = f"{report['ranks']} ranks: perplexity {report['perplexity']:.4f}; least sensitive first: {report['order']}"
    rises = (
        "{rise:.2%} (at most {rise_high:.2%}) where it was chosen, {held_out:.2%} on the rest of that text, {test:.2%}"
    )
    tail = f"Proposed for a budget of {report['budget']:.1%}: {report['proposed']}, whose rise is "
    tail += f"{rises.format(**report['proposed_rises'])} on the other text."
    return f"{head}\n\n{table(rows, ['dropped', *report['rises']])}\n\n{tail}"


def _shown(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:+.2%}" if len(values) == 1 else f"{mean:+.2%} ({min(values):+.2%} to {max(values):+.2%})"


def main() -> None:
    usual = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="?")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--train", type=Path, help="texts that choose and repair layers")
    parser.add_argument("--test", type=Path, help="texts that measure")
    parser.add_argument("--counts", type=lambda text: [int(part) for part in text.split(",")], help="default: all")
    parser.add_argument("--budget", type=float, default=0.01, help="of the proposed set")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384, help="of --train, to choose layers")
    parser.add_argument("--train-tokens", type=int, default=65536, help="of --train, to repair them")
    parser.add_argument("--test-tokens", type=int, default=32768)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument("--batch-tokens", type=int, default=usual.batch_tokens)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of the products")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print the table of what --json has printed")
    args = parser.parse_args()
    if args.show:
        report = json.loads(args.show.read_text())
    elif None in (args.model_dir, args.ranks, args.train, args.test):
        parser.error("MODEL_DIR, --ranks, --train and --test are required")
    else:
        report = measure(args)
    print(json.dumps(report, indent=2) if args.json else page(report))


if __name__ == "__main__":
    run_script(main)
