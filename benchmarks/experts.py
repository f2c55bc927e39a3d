"""Measure a mixture of experts in plain PyTorch and on each instruction path, beside the machine's limits.

    python benchmarks/experts.py [--experts 16] [--chosen 2] [--tokens 1 16 512] [--paths portable avx2] [--threads 2]

Random tokens choose their experts by a random router. `naive` is a loop over the experts in PyTorch; the others are the
engine's op, each in a process of its own, since a process has one instruction path. The table shows: the largest
difference to the same in float64, divided by the largest result; the median time; the bytes per second of the weights
of all experts that some token chooses, and their share of the read stream; GFLOP/s and their share of the fastest
product of 512 rows of any library. Within a process the samples take turns with those of the limits. With few tokens
the weights come from memory, because each call takes the next of several copies.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from common import limits
from common.limits import ReadStream, load_ops, medians, seconds_of
from torch import Tensor
from torch.nn.functional import silu

from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import RunError, UsageError

PATHS = ("portable", "avx2", "avx512", "avx512_bf16")  # the later, the faster; avx512_amx has to be named
_BYTES = 256 << 20  # of all copies of the weights
_FEW = 64  # tokens whose weights come from memory
_LIMIT_ROWS = 512  # of the products that say how fast this machine multiplies
_HEADS = ["tokens", "way", "difference", "us", "GB/s", "of read", "GFLOP/s", "of product"]


def naive(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
    """x [T, W], router [E, W], gate_up [E, 2, F, W] with the gate first, down [E, W, F] -> [T, W], in x's dtype."""
    best, chosen = (x.to(router.dtype) @ router.mT).topk(top_k)
    shares, y = best.softmax(-1).to(x.dtype), torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, rank = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ weight.mT for weight in gate_up[expert])
        y.index_add_(0, token, shares[token, rank, None] * ((silu(gate) * up) @ down[expert].mT))
    return y


@dataclass(frozen=True)
class Work:
    """T tokens of W values, of which each chooses `top_k` of E experts with F hidden values, and random weights."""

    x: Tensor
    router: Tensor
    gate_up: Tensor
    down: Tensor
    top_k: int

    @classmethod
    def random(cls, tokens: int, experts: int, top_k: int, width: int, hidden: int) -> Work:
        torch.manual_seed(0)
        gate_up = (torch.randn(experts, 2, hidden, width) / width**0.5).bfloat16()
        down = (torch.randn(experts, width, hidden) / hidden**0.5).bfloat16()
        return cls(torch.randn(tokens, width).bfloat16(), torch.randn(experts, width), gate_up, down, top_k)

    @property
    def flops(self) -> int:
        return 6 * len(self.x) * self.top_k * self.down[0].numel()

    @property
    def nbytes(self) -> int:
        """The bytes of the weights of all experts that are chosen."""
        chosen = (self.x.float() @ self.router.mT).topk(self.top_k).indices.unique()
        return 3 * len(chosen) * self.down[0].nbytes

    def exact(self) -> Tensor:
        x, router, gate_up, down = (each.double() for each in (self.x, self.router, self.gate_up, self.down))
        return naive(x, router, gate_up, down, self.top_k)

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """Return the loop in PyTorch and the op, each on the next copy of the weights."""
        plain = self._copies(self.gate_up, self.down)
        packed = self._copies(*(torch.ops.trtllm_pt.pack(each[None]) for each in (self.gate_up, self.down)))
        hidden = self.down.shape[-1]

        def op() -> Tensor:
            y: Tensor = torch.ops.trtllm_pt.experts(
                self.x[None], self.router[None], *next(packed), self.top_k, 0.0, hidden
            )
            return y[0]

        return {
            "naive": lambda: naive(self.x, self.router, *next(plain), self.top_k),
            torch.ops.trtllm_pt.isa(): op,
        }

    def _copies(self, *weights: Tensor) -> Iterator[tuple[Tensor, ...]]:
        nbytes = sum(each.nbytes for each in weights)
        more = max(0, _BYTES // nbytes - 1) if len(self.x) <= _FEW else 0
        return itertools.cycle([weights, *(tuple(each.clone() for each in weights) for _ in range(more))])


def rows_of(work: Work, best: limits.Matrix, threads: int, rounds: int) -> list[list[str]]:
    """Return the table's rows of both ways. best: the fastest product of this machine."""
    ways, exact = work.ways(), work.exact()
    *found, read, peak = medians(
        [*(lambda way=way: seconds_of(way) for way in ways.values()), ReadStream(threads), best], rounds
    )
    rows = []
    for (name, way), (seconds, _, _) in zip(ways.items(), found, strict=True):
        error = float((way().double() - exact).abs().max() / exact.abs().max())
        rate, flops = work.nbytes / seconds, work.flops / seconds
        rows.append(
            [f"{len(work.x)}", name, f"{error:.1e}", f"{1e6 * seconds:.0f}"]
            + [f"{rate / 1e9:.1f}", f"{rate / read[0]:.2f}", f"{flops / 1e9:.0f}", f"{flops / peak[0]:.2f}"]
        )
    return rows


def measure(args: argparse.Namespace) -> list[list[str]]:
    """Return the rows of this process's instruction path, and of PyTorch."""
    best, rows = limits.fastest_at(_LIMIT_ROWS, args.hidden, args.width), []
    for tokens in args.tokens:
        work = Work.random(tokens, args.experts, args.chosen, args.width, args.hidden)
        rows += rows_of(work, best, args.threads, args.rounds)
    return rows


def on(path: str) -> list[list[str]]:
    """Run this program on an instruction path, and return its rows."""
    command = [sys.executable, *sys.argv, "--rows-only"]
    done = subprocess.run(
        command, env=os.environ | {"TRTLLM_PT_ISA": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunError(f"{path}: {done.stderr.strip().splitlines()[-1]}")
    rows: list[list[str]] = json.loads(done.stdout)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=16, help="experts of the layer")
    parser.add_argument("--chosen", type=int, default=2, help="experts that a token chooses")
    parser.add_argument("--width", type=int, default=1024, help="values of a token")
    parser.add_argument("--hidden", type=int, default=768, help="hidden values of an expert")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512], help="tokens of a step")
    parser.add_argument("--paths", nargs="+", metavar="PATH", help="instruction paths [all up to this machine's best]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each way")
    parser.add_argument("--rows-only", action="store_true", help=argparse.SUPPRESS)  # of the process of one path
    args = parser.parse_args()
    if not 1 <= args.chosen <= args.experts:
        raise UsageError(f"--chosen ({args.chosen}) must be between 1 and --experts ({args.experts})")
    load_ops()
    torch.set_num_threads(args.threads)
    if args.rows_only:
        print(json.dumps(measure(args)))
        return
    paths = args.paths or PATHS[: PATHS.index(torch.ops.trtllm_pt.isa()) + 1]
    found = [on(path) for path in paths]
    rows = [row for number, rows in enumerate(found) for row in rows if not number or row[1] != "naive"]
    print(f"{args.threads} threads, {args.chosen} of {args.experts} experts, {args.hidden} x {args.width}")
    print(table(sorted(rows, key=lambda row: int(row[0])), _HEADS, left=2))


if __name__ == "__main__":
    run_script(main)
