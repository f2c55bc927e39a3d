"""Measure the attention of the embedded engine over each kind of KV cache, beside the machine's limits.

    python benchmarks/attention.py [--contexts 512 4096] [--batches 1 8] [--threads 2] [--rounds 9]

A decode step has one token of each sequence, whose keys and values are in the cache; a prefill has all tokens of one
sequence. The table shows, for each kind of cache: the largest difference to a float64 attention over unrounded keys and
values, divided by the largest result; the median time; the cache's bytes per second and their share of the read stream;
GFLOP/s and their share of the fastest product of 512 rows of any library. Samples of all kinds of cache take turns.
TRTLLM_PT_ISA selects the instruction path.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

import torch
from common import limits
from common.limits import ReadStream, load_ops, medians, seconds_of
from torch import Tensor

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.form import Storage
from trtllm_pt.backends.embedded.graph import cache_info
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.model.config import ModelConfig

_STORAGES = {"bfloat16": Storage(torch.bfloat16), "INT8": Storage(torch.bfloat16, kv_cache_quant_algo="INT8")}
_HEADS = ["step", "cache", "difference", "us", "GB/s", "of read", "GFLOP/s", "of product"]


@dataclass
class Step:
    """A call of the op. A call of it returns the seconds of one step."""

    heads: int
    size: int
    qkv: Tensor  # [1, B * n, (H + 2 G) D], n tokens of each of B sequences
    cache: Tensor
    starts: Tensor
    offsets: Tensor
    pages: Tensor

    def result(self) -> Tensor:
        sequences = (self.starts, self.offsets, self.pages)
        sizes = (self.heads, self.size, 0, 1e-5, False)
        y: Tensor = torch.ops.trtllm_pt.attention(self.qkv, None, None, None, self.cache, *sequences, *sizes)
        return y

    def __call__(self) -> float:
        return seconds_of(self.result)


@dataclass(frozen=True)
class Work:
    """The sizes of a step: B sequences of `context` tokens, of which all, or only the last one, are new."""

    heads: int
    kv_heads: int
    size: int
    batch: int
    context: int
    decode: bool

    def __str__(self) -> str:
        return f"decode {self.batch} x {self.context}" if self.decode else f"prefill {self.context}"

    @property
    def flops(self) -> int:
        keys = self.context if self.decode else self.context * (self.context + 1) // 2
        return 4 * self.batch * keys * self.heads * self.size

    def qkv(self) -> Tensor:
        """Return all tokens of all sequences, [B, context, (H + 2 G) D]."""
        generator = torch.Generator().manual_seed(0)
        width = (self.heads + 2 * self.kv_heads) * self.size
        return torch.randn(self.batch, self.context, width, generator=generator).bfloat16()

    def step(self, storage: Storage) -> Step:
        """Return the step, with everything before it in the cache."""
        each = -(-self.context // PAGE)
        info = cache_info(self._config(), 1, self.batch * each, storage)
        cache, pages = torch.zeros(info.shape, dtype=info.dtype), torch.arange(self.batch * each).view(self.batch, each)
        rows = self.qkv()
        whole = torch.arange(self.batch + 1) * self.context
        prompt = Step(
            self.heads, self.size, rows.flatten(0, 1)[None], cache, torch.zeros(self.batch).long(), whole, pages
        )
        prompt.result()
        if not self.decode:
            return prompt
        last = rows[:, -1].contiguous()[None]
        starts = torch.full((self.batch,), self.context - 1)
        return Step(self.heads, self.size, last, cache, starts, torch.arange(self.batch + 1), pages)

    def exact(self) -> Tensor:
        """Return the result of the step in float64, [B * new tokens, H D]."""
        q, k, v = (
            self.qkv().double().unflatten(-1, (-1, self.size)).split([self.heads, self.kv_heads, self.kv_heads], 2)
        )
        new = q[:, -1:] if self.decode else q
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 2) for each in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", new, k) * self.size**-0.5
        if not self.decode:
            scores += torch.full(scores.shape[-2:], -torch.inf).triu(1)
        return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2).flatten(0, 1)

    def _config(self) -> ModelConfig:
        return ModelConfig(
            num_layers=1,
            hidden_size=self.heads * self.size,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_size=self.size,
            intermediate_size=1,
            vocab_size=1,
        )


def lines_of(work: Work, best: limits.Matrix, threads: int, rounds: int) -> list[list[str]]:
    """Return the table's lines of a step. best: the fastest product of this machine."""
    steps, exact = {name: work.step(storage) for name, storage in _STORAGES.items()}, work.exact()
    *found, read, peak = medians([*steps.values(), ReadStream(threads), best], rounds)
    lines = []
    for (name, step), (seconds, _, _) in zip(steps.items(), found, strict=True):
        error = float((step.result()[0].double() - exact).abs().max() / exact.abs().max())
        rate, flops = step.cache.nbytes / seconds, work.flops / seconds
        lines.append(
            [str(work), name, f"{error:.1e}", f"{1e6 * seconds:.0f}", f"{rate / 1e9:.1f}", f"{rate / read[0]:.2f}"]
            + [f"{flops / 1e9:.0f}", f"{flops / peak[0]:.2f}"]
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096], help="tokens of each sequence")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences of a decode step")
    parser.add_argument("--heads", type=int, default=16, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=8, help="heads of keys and values")
    parser.add_argument("--head-size", type=int, default=64, help="a multiple of 16")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each step")
    args = parser.parse_args()
    load_ops()
    torch.set_num_threads(args.threads)
    sizes = (args.heads, args.kv_heads, args.head_size)
    works = [Work(*sizes, batch, context, decode=True) for context in args.contexts for batch in args.batches]
    works += [Work(*sizes, 1, context, decode=False) for context in args.contexts]
    best, lines = limits.fastest_at(512, args.heads * args.head_size, args.heads * args.head_size), []
    for work in works:
        lines += lines_of(work, best, args.threads, args.rounds)
    print(f"{torch.ops.trtllm_pt.isa()}, {args.threads} threads, {args.heads} heads, {args.kv_heads} KV heads")
    print(table(lines, _HEADS, left=2))


if __name__ == "__main__":
    run_script(main)
