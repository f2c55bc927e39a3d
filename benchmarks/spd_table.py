"""Perplexity of a dense model by the number of all-reduces that Sync-Point Drop removes.

    python benchmarks/spd_table.py MODEL_DIR --ranks 4 --train texts --test held-out [--seeds 3] [--steps 400] [--json]

Each row is a number of dropped layers; columns are ways to choose and to repair them. Layers are chosen and repaired on
the texts --train, and every figure is the rise of perplexity on the texts --test. Random choices and distillation have
one run for each seed, and the table shows the mean and the range.
"""

from __future__ import annotations

import argparse
import json
import math
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


def nats(source: Source, windows: Tensor, sets: Sequence[Collection[int]]) -> list[float]:
    """Return the mean nats per token with each of the sets of layers dropped."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Streams(Blocks(source, torch.float32), windows, Path(folder)))
        return [float(each.mean()) for each in sweep.measure(sets, "measuring")]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    dense = open_source(args.model_dir)
    split, layers = SplitSource(dense, args.ranks), range(dense.config.num_layers)
    windows = read_windows(dense, [args.test], args.window, args.test_tokens)
    found, _ = analyse(args.model_dir, args.ranks, [args.train], window=args.window, tokens=args.tokens)
    order = [each.layer for each in sorted(found.layers, key=lambda each: (each.rise, -each.layer))]
    chosen = [order[:count] for count in range(1, len(layers) + 1)]
    last = [[*layers][-count:] for count in range(1, len(layers) + 1)]
    ways: dict[str, list[list[float]]] = {"last layers": [nats(split, windows, last)]}
    ways["least sensitive"] = [nats(split, windows, chosen)]
    ways["random"] = []
    for seed in range(args.seeds):
        shuffled = np.random.default_rng(seed).permutation(len(layers)).tolist()
        ways["random"].append(nats(split, windows, [shuffled[:count] for count in range(1, len(layers) + 1)]))
    for way, group in (("distilled", ()), ("grouped, distilled", tuple(layers))):
        ways[way] = []
        for seed in range(args.seeds):
            recipe = Recipe(args.steps, args.learning_rate, seed=seed)
            options: dict[str, Any] = {"recipe": recipe, "window": args.window, "tokens": args.train_tokens}
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "repaired"
                distil(args.model_dir, output, args.ranks, [args.train], tuple(layers), group=group, **options)
                repaired = open_source(output)
                ways[way].append([nats(PartlyRepaired(split, repaired, some), windows, [some])[0] for some in chosen])
    [base] = nats(split, windows, [()])
    rises = {way: [[math.expm1(x - base) for x in run] for run in runs] for way, runs in ways.items()}
    return {"ranks": args.ranks, "perplexity": math.exp(base), "order": order, "rises": rises}


def page(report: dict[str, Any]) -> str:
    rows = []
    for place in range(len(report["order"])):
        each = [[run[place] for run in runs] for runs in report["rises"].values()]
        rows.append([place + 1, *map(_shown, each)])
    head = f"{report['ranks']} ranks: perplexity {report['perplexity']:.4f}; least sensitive first: {report['order']}"
    return f"{head}\n\n{table(rows, ['dropped', *report['rises']])}"


def _shown(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:+.2%}" if len(values) == 1 else f"{mean:+.2%} ({min(values):+.2%} to {max(values):+.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--train", type=Path, required=True, help="texts that choose and repair layers")
    parser.add_argument("--test", type=Path, required=True, help="texts that measure")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16384, help="of --train, to choose layers")
    parser.add_argument("--train-tokens", type=int, default=65536, help="of --train, to repair them")
    parser.add_argument("--test-tokens", type=int, default=32768)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = measure(args)
    print(json.dumps(report, indent=2) if args.json else page(report))


if __name__ == "__main__":
    run_script(main)
