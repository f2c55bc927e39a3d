"""Products of integers, which quantise activations too, against float64 formulas of the quantised numbers."""

import pytest
import torch
from torch import Tensor

from tests.backends.embedded.kernels.plain import as_stored, close, linear_swiglu, randn
from tests.backends.embedded.kernels.test_codes import FORMS, IDS, quantised


def integers(*shape: int, form: tuple[int, int, bool], dtype: torch.dtype) -> tuple[Tensor, list[int], Tensor]:
    packed, argument, numbers = quantised(*shape, form=form, dtype=dtype)
    return packed, [*argument, 1], numbers


@pytest.fixture(params=FORMS, ids=IDS)
def form(request: pytest.FixtureRequest) -> tuple[int, int, bool]:
    return request.param


@pytest.mark.parametrize("K, T, inputs, N", [(1, 1, 128, 64), (2, 5, 384, 80), (1, 40, 1152, 128)])
def test_linear(ops, dtype, form, K, T, inputs, N):
    x, bias = randn(K, T, inputs, dtype=dtype), randn(K, N, dtype=dtype)
    packed, code, w = integers(K, N, inputs, form=form, dtype=dtype)
    close(ops.linear(x, packed, bias, N, code), as_stored(x) @ w.mT + bias.double()[:, None], dtype)


@pytest.mark.parametrize("T", [1, 9])
def test_linear_swiglu(ops, dtype, form, T):
    x = randn(2, T, 256, dtype=dtype)
    packed, code, w = integers(2, 2, 96, 256, form=form, dtype=dtype)
    close(ops.linear_swiglu(x, packed, 96, code), linear_swiglu(as_stored(x), w), dtype)


def test_tokens_do_not_meet(ops, form):
    """To the bit, in float32, for all numbers of rows that are multiplied differently."""
    x = randn(1, 300, 1152) * torch.logspace(-3, 3, 300)[:, None]
    packed, code, _ = integers(1, 80, 1152, form=form, dtype=torch.float32)
    whole = ops.linear(x, packed, None, 80, code)
    for rows in [*range(1, 20), 31, 33, 255, 256, 257]:
        assert torch.equal(ops.linear(x[:, :rows], packed, None, 80, code), whole[:, :rows]), rows
        assert torch.equal(ops.linear(x[:, -rows:], packed, None, 80, code), whole[:, -rows:]), rows


@pytest.mark.parametrize("bits", [8, 4])
def test_the_largest_integers_do_not_overflow(ops, bits):
    inputs, least = 65536, -1 << (bits - 1)
    packed, code, _ = integers(1, 16, inputs, form=(bits, 0, False), dtype=torch.float32)
    header = 64
    packed[..., header:] = 0x80 if bits == 8 else 0x88
    packed[..., :header].view(torch.float32).fill_(1.0)
    for sign in (1, -1):
        got = ops.linear(torch.full((1, 1, inputs), 3.0 * sign), packed, None, 16, code)
        close(got, torch.full((1, 1, 16), 3.0 * sign * least * inputs, dtype=torch.float64), torch.float32)


def test_zeros_and_nan(ops, dtype):
    x = randn(1, 4, 128, dtype=dtype)
    x[0, 1], x[0, 2, 7], x[0, 3, 9] = 0, float("nan"), float("inf")
    packed, code, _ = integers(1, 32, 128, form=(8, 32, True), dtype=dtype)
    y = ops.linear(x, packed, None, 32, code)
    assert y[0, 0].isfinite().all() and y[0, 1].eq(0).all() and y[0, 2:].isnan().all()


def test_mistakes_are_errors_with_names_and_numbers(ops):
    packed, code, _ = integers(64, 128, form=(8, 0, False), dtype=torch.float32)
    gate_up, _, _ = integers(1, 1, 2, 64, 64, form=(8, 0, False), dtype=torch.float32)
    down, _, _ = integers(1, 1, 64, 64, form=(8, 0, False), dtype=torch.float32)
    x, router = randn(1, 3, 64), randn(1, 1, 64)
    cases = [
        (lambda: ops.head(randn(1, 128), packed, torch.tensor([0]), 64, code), "head has no product of integers"),
        (lambda: ops.experts(x, router, gate_up, down, 1, 0.0, 64, code, code), "experts has no product of integers"),
        (
            lambda: ops.linear(randn(1, 1, 65600), packed[None], None, 64, [8, 1, 0, 1]),
            "linear: w: a product of integers has at most 65536 inputs, not 65600",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
