"""Products with quantised weights, against float64 products with the numbers that the weights stand for."""

import pytest
import torch

from tests.backends.embedded.kernels import plain
from tests.backends.embedded.kernels.plain import close, linear_swiglu, randn
from trtllm_pt.backends.embedded.codes import pack
from trtllm_pt.backends.embedded.form import Form

# bits, inputs per group (0: one group), zero points
FORMS = [(8, 0, False), (4, 0, False), (8, 32, True), (4, 32, True), (4, 64, False), (4, 128, False), (4, 128, True)]
IDS = ["-".join(map(str, form)) for form in FORMS]


def quantised(*shape: int, form: tuple[int, int, bool], dtype: torch.dtype, seed: int = 0):
    """Random weights of a shape: packed, the ops' argument, and in float64."""
    bits, group, has_zeros = form
    *lead, rows, columns = shape
    groups, most = columns // (group or columns), 1 << (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-most, most, shape, generator=generator, dtype=torch.int8)
    scales = (0.5 + torch.rand(*lead, rows, groups, generator=generator)).to(dtype) / columns**0.5 / most
    scales = scales.to(dtype)
    zeros = torch.randint(-most, most, scales.shape, generator=generator).to(dtype) if has_zeros else None
    numbers = codes.double().unflatten(-1, (groups, -1))
    if zeros is not None:
        numbers = numbers - zeros.double()[..., None]
    packed = pack(codes, scales, zeros, bits)
    return packed, Form(bits, groups, has_zeros).to_list(), (numbers * scales.double()[..., None]).flatten(-2)


@pytest.fixture(params=FORMS, ids=IDS)
def form(request):
    return request.param


@pytest.mark.parametrize("K, T, inputs, N", [(1, 1, 128, 64), (2, 5, 384, 80), (1, 40, 1152, 128)])
def test_linear(ops, dtype, form, K, T, inputs, N):
    x, bias = randn(K, T, inputs, dtype=dtype), randn(K, N, dtype=dtype)
    packed, code, w = quantised(K, N, inputs, form=form, dtype=dtype)
    want = x.double() @ w.mT + bias.double()[:, None]
    close(ops.linear(x, packed, bias, N, code), want, dtype)


@pytest.mark.parametrize("T", [1, 9])
def test_linear_swiglu(ops, dtype, form, T):
    x = randn(2, T, 256, dtype=dtype)
    packed, code, w = quantised(2, 2, 96, 256, form=form, dtype=dtype)
    close(ops.linear_swiglu(x, packed, 96, code), linear_swiglu(x, w), dtype)


@pytest.mark.parametrize("first, n", [(0, 96), (5, 70), (37, 100)])
def test_head_adds_in_float32(ops, dtype, form, first, n):
    x = randn(5, 128, dtype=dtype)
    packed, code, w = quantised(96, 128, form=form, dtype=dtype)
    got, inside = ops.head(x, packed, torch.tensor([first]), n, code), min(n, 96 - first)
    close(got[:, :inside], x.double() @ w[first : first + inside].T, torch.float32)
    assert got[:, inside:].eq(-float("inf")).all()


def test_experts(ops, dtype, form):
    K, E, T, W, F = 2, 3, 20, 128, 128
    x, router = randn(K, T, W, dtype=dtype), randn(K, E, W, seed=1)
    gate_up, gate_up_form, gate_up_w = quantised(K, E, 2, F, W, form=form, dtype=dtype)
    down, down_form, down_w = quantised(K, E, W, F, form=form, dtype=dtype)
    got = ops.experts(x, router, gate_up, down, 2, 0.0, F, gate_up_form, down_form)
    close(got, plain.experts(x, router, gate_up_w, down_w, 2, 0.0), dtype)


def test_products_have_one_order_for_every_number_of_rows(ops, dtype, form):
    """Few rows multiply with the codes, many with expanded weights; both add in the same order."""
    x, first = randn(300, 1152, dtype=dtype), torch.tensor([0])
    packed, code, _ = quantised(80, 1152, form=form, dtype=dtype)
    whole = ops.head(x, packed, first, 80, code)
    for rows in [*range(1, 20), 31, 33, 255, 256, 257]:
        assert torch.equal(ops.head(x[:rows], packed, first, 80, code), whole[:rows]), rows
        assert torch.equal(ops.head(x[-rows:], packed, first, 80, code), whole[-rows:]), rows


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_every_code_is_exact(ops, dtype, bits, rows):
    most, inputs = 1 << (bits - 1), 64
    codes = (torch.arange(2 * most)[:, None] + torch.arange(inputs)) % (2 * most) - most
    packed = pack(codes.to(torch.int8), torch.ones(2 * most, 1, dtype=dtype), None, bits)
    for i in (0, 1, 2, 3, 13, 63):
        x = torch.zeros(rows, inputs, dtype=dtype)
        x[:, i] = 1
        got = ops.head(x, packed, torch.tensor([0]), 2 * most, [bits, 1, 0])
        assert torch.equal(got, codes[:, i].float().expand(rows, -1))


def test_gather_rows_of_an_int8_table(ops, dtype):
    packed, code, w = quantised(40, 96, form=(8, 0, False), dtype=dtype)
    ids = torch.tensor([0, 39, 16, 15, 7, 7])
    assert torch.equal(ops.gather_rows(ids, packed, 96, code, dtype), w[ids].to(dtype))
    with pytest.raises(RuntimeError, match=r"form must be \{8, 1, 0\} for a quantised table, is \[8, 3, 0\]"):
        ops.gather_rows(ids, quantised(40, 96, form=(8, 32, False), dtype=dtype)[0], 96, [8, 3, 0], dtype)


def test_mistakes_are_errors_with_names_and_numbers(ops):
    packed, code, _ = quantised(64, 128, form=(4, 64, False), dtype=torch.float32)
    x, w = randn(1, 3, 128), packed[None]
    cases = [
        (lambda: ops.linear(x, w, None, 64, [8, 2, 0]), r"linear: w must have shape \[1, 4, 2176\]"),
        (lambda: ops.linear(x, w, None, 64), "linear: w must be Float"),
        (lambda: ops.linear(x, w.char(), None, 64, code), "linear: w must be Byte"),
        (lambda: ops.linear(x, w, None, 64, [4, 3, 0]), r"groups of a multiple of 32 inputs, is \[4, 3, 0\] for 128"),
        (lambda: ops.linear(x, w, None, 64, [5, 2, 0]), r"must be \{4 or 8, groups, zeros\}"),
        (lambda: ops.linear_swiglu(x, w[:, None, :3].expand(1, 2, 3, -1).contiguous(), 48, code), "multiple of 32"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
