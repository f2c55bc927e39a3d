"""Measure the limits of this machine: reading memory, multiplying matrices, and all-reduces.

    python benchmarks/limits.py [--threads 2] [--ranks 2] [--rounds 9] [--json]

Samples are taken in turn. The table shows medians, and also the range for the read stream.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import torch
from common.limits import PRODUCTS, ReadStream, load_ops, matrices, medians

from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.cli import run_script
from trtllm_pt.errors import RunError

_DTYPES = (torch.float32, torch.bfloat16)
_SIZES = "512,8388608,4"  # bytes of an all-reduce: smallest, largest, factor


def reads(threads: int, rounds: int) -> list[dict[str, Any]]:
    counts = sorted({1, threads})
    found = medians([ReadStream(count) for count in counts], rounds)
    return [
        {"threads": count, "gb_s": middle / 1e9, "min": low / 1e9, "max": high / 1e9}
        for count, (middle, low, high) in zip(counts, found, strict=True)
    ]


def products(threads: int, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    rows = []
    for dtype in _DTYPES:
        for product in PRODUCTS:
            ways = matrices(product, dtype)
            found = medians([*ways], rounds)
            rates = {way.name: middle / 1e9 for way, (middle, _, _) in zip(ways, found, strict=True)}
            rows.append({"dtype": str(dtype).removeprefix("torch."), "product": str(product), "gflops": rates})
    return rows


def all_reduces(ranks: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "trtllm_pt", "bench", "all-reduce", "--ranks", str(ranks)]
    options = ["--range", _SIZES, "--rounds", str(rounds), "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"bench all-reduce failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {key: found[key] for key in ("world_size", "rows", "fits")}


def page(report: dict[str, Any]) -> str:
    lines = [f"{report['machine']['name']}, {report['isa']}", "", "| threads | read GB/s | range |", "|---|---:|---:|"]
    for row in report["read"]:
        lines.append(f"| {row['threads']} | {row['gb_s']:.1f} | {row['min']:.1f} to {row['max']:.1f} |")
    names = list(report["products"][-1]["gflops"])
    lines += ["", f"| {report['threads']} threads, GFLOP/s | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for row in report["products"]:
        rates = " | ".join(f"{row['gflops'][name]:.0f}" if name in row["gflops"] else "" for name in names)
        lines.append(f"| {row['product']}, {row['dtype']} | {rates} |")
    all_reduce = report["all_reduce"]
    lines += [
        "",
        f"| all-reduce, {all_reduce['world_size']} ranks | bytes | microseconds | GB/s |",
        "|---|---:|---:|---:|",
    ]
    for row in all_reduce["rows"]:
        times = f"{1e3 * row['duration (ms)']:.1f} | {row['algbw (GB/s)']:.2f}"
        lines.append(f"| {row['strategy']} | {row['message size']} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="largest number of threads")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the all-reduces")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each measurement")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()
    load_ops()
    report = {
        "machine": machine_facts(),
        "isa": torch.ops.trtllm_pt.isa(),
        "threads": args.threads,
        "read": reads(args.threads, args.rounds),
        "products": products(args.threads, args.rounds),
        "all_reduce": all_reduces(args.ranks, args.rounds),
    }
    print(json.dumps(report) if args.json else page(report))


if __name__ == "__main__":
    run_script(main)
