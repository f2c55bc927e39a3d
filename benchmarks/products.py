"""Measure the product of the embedded engine with every form of weights, beside the machine's limits.

    python benchmarks/products.py [--outputs 5632] [--inputs 1024] [--rows 1 4 16 512] [--gemm int8] [--threads 2]

The table shows, for every form and number of rows: the largest difference to a float64 product, divided by the largest
result; the median time, and that of the first form divided by it; the weights' bytes per second and their share of the
read stream; GFLOP/s and their share of the fastest product of 512 rows of any library, in bfloat16 or float32. The
larger one of the two shares says how close a product is to the machine's limit. Samples of all forms are taken in
turn. With --gemm int8, the products with quantised weights quantise x, too. With few rows the weights come from memory,
because each call takes the next of several copies. TRTLLM_PT_ISA selects the instruction path.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from common import limits
from common.limits import ReadStream, load_ops, medians, seconds_of
from torch import Tensor

from trtllm_pt.backends.embedded import codes
from trtllm_pt.backends.embedded.form import Storage
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.model.quantization import WEIGHT_ONLY

_BYTES = 256 << 20  # of all copies of the weights of one form
_COPIES = 128  # at most
_PLAIN = "bfloat16"
_FORMS = (_PLAIN, *WEIGHT_ONLY)
_LIMIT_ROWS = 512  # of the products that say how fast this machine multiplies


@dataclass
class Product:
    """Products of x [rows, inputs] with weights of one form. A call returns the seconds of one product."""

    name: str
    x: Tensor
    weights: Iterator[Tensor]
    nbytes: int  # of the weights
    outputs: int
    form: list[int] | None
    exact: Tensor

    def result(self) -> Tensor:
        y: Tensor = torch.ops.trtllm_pt.linear(self.x[None], next(self.weights), None, self.outputs, self.form)[0]
        return y

    def difference(self) -> float:
        want = self.x.double() @ self.exact.mT
        return float((self.result().double() - want).abs().max() / want.abs().max())

    def __call__(self) -> float:
        return seconds_of(self.result)


def product(name: str, x: Tensor, outputs: int, integer: bool) -> Product:
    inputs = x.shape[1]
    form = Storage(torch.bfloat16, None if name == _PLAIN else name).form(inputs)
    if form is None:
        exact = torch.randn(outputs, inputs).bfloat16()
        packed, exact = torch.ops.trtllm_pt.pack(exact[None]), exact.double()
    else:
        most = 1 << (form.bits - 1)
        values = torch.randint(-most, most, (outputs, inputs), dtype=torch.int8)
        scales = (0.5 + torch.rand(outputs, form.groups)).bfloat16()
        zeros = torch.randint(-most, most, scales.shape).bfloat16() if form.zeros else None
        exact = values.double().unflatten(-1, (form.groups, -1))
        exact = exact if zeros is None else exact - zeros.double()[..., None]
        exact = (exact * scales.double()[..., None]).flatten(-2)
        packed = codes.pack(values, scales, zeros, form.bits)[None]
    copies = min(max(1, _BYTES // packed.nbytes), _COPIES) if len(x) <= 64 else 1
    rotating = itertools.cycle([packed, *(packed.clone() for _ in range(copies - 1))])
    argument = None if form is None else replace(form, integer=integer).to_list()
    return Product(name, x, rotating, packed.nbytes, outputs, argument, exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=5632, help="outputs of the matrix")
    parser.add_argument("--inputs", type=int, default=1024, help="inputs of the matrix, a multiple of 128")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 512], help="rows of x")
    parser.add_argument("--forms", nargs="+", default=list(_FORMS), choices=_FORMS, help="forms of weights")
    parser.add_argument("--gemm", choices=["int8"], help="quantise x, too, and multiply integers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each product")
    args = parser.parse_args()
    load_ops()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    best, lines = limits.fastest_at(_LIMIT_ROWS, args.outputs, args.inputs), []
    for rows in args.rows:
        x = torch.randn(rows, args.inputs).bfloat16()
        products = [product(name, x, args.outputs, args.gemm == "int8") for name in args.forms]
        *found, read, peak = medians([*products, ReadStream(args.threads), best], args.rounds)
        for each, (seconds, _, _) in zip(products, found, strict=True):
            rate, flops = each.nbytes / seconds, 2 * rows * args.outputs * args.inputs / seconds
            lines.append(
                [f"{rows}", each.name, f"{each.difference():.1e}", f"{1e6 * seconds:.0f}"]
                + [f"{found[0][0] / seconds:.2f}", f"{rate / 1e9:.1f}", f"{rate / read[0]:.2f}"]
                + [f"{flops / 1e9:.0f}", f"{flops / peak[0]:.2f}"]
            )
    heads = ["rows", "weights", "difference", "us", f"{args.forms[0]} / this"]
    heads += ["GB/s", "of read", "GFLOP/s", "of product"]
    print(f"{torch.ops.trtllm_pt.isa()}, {args.threads} threads, {args.outputs} x {args.inputs}")
    print(table(lines, heads, left=2))


if __name__ == "__main__":
    run_script(main)
