"""The AMX path, where it is this process's: test_paths.py starts these tests so, on an emulator if need be."""

import ctypes
import os

import pytest
import torch
from torch import Tensor

from tests.backends.embedded.kernels.plain import Batch, Shape, attend, randn


@pytest.fixture(autouse=True)
def _only_with_tiles(ops):
    if ops.isa() != "avx512_amx":
        pytest.skip("another path")


def flushed(x: Tensor) -> Tensor:
    return x.where(x.abs() >= torch.finfo(torch.float32).tiny, 0)


def one_instruction(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """TDPBF16PS as Intel's manual spells it: x [T, 2k], w [N, 2k], total [T, N] float32."""
    x, w = flushed(x.float()).double(), flushed(w.float()).double()
    even = odd = torch.zeros_like(total)
    for k in range(0, x.shape[1], 2):
        even = flushed((even + x[:, k, None] * w[:, k]).float())  # the product is exact: one rounding
        odd = flushed((odd + x[:, k + 1, None] * w[:, k + 1]).float())
    return flushed(flushed(total) + flushed(even + odd))


@pytest.mark.parametrize("inputs", [2, 16, 32, 34, 94, 608])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("size", [1.0, 1e-19], ids=["ordinary", "denormal products"])
def test_sums_are_the_manuals_to_the_bit(ops, inputs, rows, size):
    x, w = size * randn(rows, inputs), size * randn(48, inputs, seed=1)
    x[:, 0] = 1e-39  # a denormal counts as zero
    x, w = x.bfloat16(), w.bfloat16()
    want = torch.zeros(rows, 48)
    for k in range(0, inputs, 32):
        want = one_instruction(want, x[:, k : k + 32], w[:, k : k + 32])
    got = ops.head(x, ops.pack(w), torch.tensor([0]), 48)
    assert torch.equal(got, want)
    if inputs > 2:
        assert got.count_nonzero() > 0


def test_tiles_are_released(ops):
    """Tiles in use enlarge every context switch and signal frame of the thread."""
    emulator = os.environ.get("LD_PRELOAD", "")
    if "amx_emulator" not in emulator:
        pytest.skip("only the emulator can tell")
    tiles = ctypes.CDLL(emulator)
    x, w, shape = randn(1, 3, 70).bfloat16(), randn(1, 20, 70).bfloat16(), Shape(dtype=torch.bfloat16)
    before = tiles.amx_emulator_configured()
    ops.linear(x, ops.pack(w), None, 20)
    attend(shape, randn(1, 3, shape.width).bfloat16(), shape.cache(1), Batch.make([0], [3], [[0]]))
    assert tiles.amx_emulator_configured() > before and not tiles.amx_emulator_in_use()
