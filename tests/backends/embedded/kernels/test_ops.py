"""Every op against plain PyTorch."""

import pytest
import torch

from tests.backends.embedded.kernels import plain
from tests.backends.embedded.kernels.plain import Batch, Shape, close, randn

INF = float("inf")


@pytest.mark.parametrize(
    "K, T, inputs, N", [(1, 1, 64, 64), (1, 7, 33, 20), (2, 19, 130, 200), (3, 300, 1025, 70), (1, 3, 1, 1)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_linear(ops, dtype, K, T, inputs, N, biased):
    x, w = randn(K, T, inputs, dtype=dtype), randn(K, N, inputs, dtype=dtype, seed=1)
    bias = randn(K, N, dtype=dtype) if biased else None
    want = x.double() @ w.double().mT + (bias.double()[:, None] if biased else 0)
    close(ops.linear(x, ops.pack(w), bias, N), want, dtype)


def test_pack_is_tiles_of_sixteen_outputs(ops, dtype):
    e, w = (2 if dtype == torch.bfloat16 else 1), randn(2, 3, 20, 7, dtype=dtype)
    packed = ops.pack(w)
    assert packed.shape == (2, 3, 2, -(-7 // e), 16 * e)
    plain_again = packed.view(2, 3, 2, -1, 16, e).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 32, -1)
    assert torch.equal(plain_again[..., :20, :7], w)
    assert plain_again[..., 20:, :].eq(0).all() and plain_again[..., 7:].eq(0).all()


@pytest.mark.parametrize("first, n", [(0, 96), (16, 30), (5, 70), (37, 100), (90, 20), (96, 4), (1000, 3)])
def test_head_slices_the_table_at_any_row(ops, dtype, first, n):
    x, table = randn(5, 51, dtype=dtype), randn(96, 51, dtype=dtype, seed=1)
    got = ops.head(x, ops.pack(table), torch.tensor([first]), n)
    assert got.dtype == torch.float32 and got.shape == (5, n)
    inside = max(0, min(n, 96 - first))
    assert got[:, inside:].eq(-INF).all()
    if inside:
        close(got[:, :inside], x.double() @ table[first : first + inside].double().T, torch.float32)


def test_gather_rows(ops, dtype):
    table, ids = randn(40, 33, dtype=dtype), torch.tensor([0, 39, 16, 15, 7, 7])
    assert torch.equal(ops.gather_rows(ids, ops.pack(table), 33), table[ids])
    for bad in (-1, 48):
        with pytest.raises(RuntimeError, match=f"id {bad} of token 1"):
            ops.gather_rows(torch.tensor([0, bad]), ops.pack(table), 33)


@pytest.mark.parametrize("W", [1, 16, 33, 100, 1024])
def test_rms_norm(ops, dtype, W):
    x, weight = 3 * randn(2, 9, W, dtype=dtype), randn(2, W, dtype=dtype, seed=1)
    close(ops.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight[:, None], 1e-5), dtype)
    close(ops.rms_norm(x[:1], weight, 1e-5), plain.rms_norm(x[:1], weight[:, None], 1e-5), dtype)


@pytest.mark.parametrize(
    "K, T, inputs, F",
    [(1, 1, 64, 64), (1, 7, 33, 20), (2, 19, 130, 200), (3, 300, 1025, 70), (1, 3, 1, 1), (2, 5, 40, 32)],
)
def test_linear_swiglu(ops, dtype, K, T, inputs, F):
    x, w = randn(K, T, inputs, dtype=dtype), 4 * randn(K, 2, F, inputs, dtype=dtype, seed=1) / inputs**0.5
    close(ops.linear_swiglu(x, ops.pack(w), F), plain.linear_swiglu(x, w), dtype)


@pytest.mark.parametrize("gate", [200.0, -200.0])
def test_linear_swiglu_where_exp_over_and_underflows(ops, dtype, gate):
    x, w = torch.ones(1, 2, 1, dtype=dtype), torch.tensor([[[gate]], [[3.0]]], dtype=dtype)[None]
    want = torch.full((1, 2, 1), max(gate, 0) * 3, dtype=dtype)
    torch.testing.assert_close(ops.linear_swiglu(x, ops.pack(w), 1), want, rtol=0, atol=1e-6)


def test_nan_stays_visible(ops, dtype):
    x, w = randn(1, 2, 64, dtype=dtype), ops.pack(randn(1, 2, 20, 64, dtype=dtype))
    x[0, 0, 3] = float("nan")
    y = ops.linear_swiglu(x, w, 20)
    assert y[0, 0].isnan().all() and y[0, 1].isfinite().all()
    shape = Shape(heads=1, kv_heads=1, size=16, rope=False, dtype=dtype)
    qkv = randn(1, 3, 48, dtype=dtype)
    qkv[0, 1, 0] = float("nan")
    out = plain.attend(shape, qkv, shape.cache(1), Batch.make([0], [3], [[0]]))
    assert out[0, 1].isnan().all() and out[0, [0, 2]].isfinite().all()


def test_rotary(ops):
    starts, offsets = torch.tensor([5, 0, 1000]), torch.tensor([0, 2, 5, 6])
    got = ops.rotary(torch.zeros(6, dtype=torch.int64), starts, offsets, plain.INV_FREQ[64])
    angles = torch.tensor([5, 6, 0, 1, 2, 1000.0])[:, None] * plain.INV_FREQ[64]
    want = torch.cat([angles.double().cos(), angles.double().sin()], -1).float()
    assert torch.equal(got, want)


SHAPES = [
    Shape(),
    Shape(heads=3, kv_heads=3, size=16),
    Shape(tracks=3, heads=4, kv_heads=1, size=32, norm=True),
    Shape(tracks=2, heads=4, kv_heads=2, size=32, norm=True, norm_last=True),
    Shape(size=80, rope=False, window=20),
    Shape(heads=8, kv_heads=1, size=128, norm=True, rope=False),
    Shape(tracks=2, window=70, norm=True),
    Shape(window=1),
    Shape(heads=60, kv_heads=1, size=16, window=100),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(ops, dtype, shape):
    shape = Shape(**{**shape.__dict__, "dtype": dtype})
    lengths, T = [150, 16, 67], 233
    qkv = randn(shape.tracks, T, shape.width, dtype=dtype)
    pages = [[3, 9, 1, 12, 7, 0, 15, 11, 10, 2], [5], [14, 4, 8, 13, 6]]
    got = plain.attend(shape, qkv, shape.cache(16), Batch.make([0, 0, 0], lengths, pages))
    for want, part in zip(qkv.split(lengths, 1), got.split(lengths, 1), strict=True):
        close(part, plain.attention(shape, want), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_an_int8_cache(ops, dtype, shape):
    shape = Shape(**{**shape.__dict__, "dtype": dtype, "int8": True})
    qkv = randn(shape.tracks, 150, shape.width, dtype=dtype)
    got = plain.attend(shape, qkv, shape.cache(10), Batch.make([0], [150], [list(range(10))]))
    want = plain.attention(shape, qkv)
    # An element in the middle between two codes may get the other one, which changes it by 1/127 of the row's largest.
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error < (2e-3 if dtype == torch.float32 else 1.6e-2), error
    exact = plain.attention(Shape(**{**shape.__dict__, "int8": False}), qkv)
    assert (want - exact).abs().max() / exact.abs().max() > 2e-3 or shape.window == 1


def test_an_int8_cache_keeps_zeros(ops, dtype):
    """A head of zeros has no largest element to divide by."""
    shape = Shape(heads=1, kv_heads=1, size=16, rope=False, dtype=dtype, int8=True)
    qkv = torch.zeros(1, 3, 48, dtype=dtype)
    assert plain.attend(shape, qkv, shape.cache(1), Batch.make([0], [3], [[0]])).eq(0).all()


@pytest.mark.parametrize(
    "E, top_k, cap, F, W, T", [(4, 2, 0.0, 33, 50, 9), (8, 1, 30.0, 64, 64, 1), (3, 3, 5.0, 20, 31, 300)]
)
def test_experts(ops, dtype, E, top_k, cap, F, W, T):
    K = 2
    x, router = randn(K, T, W, dtype=dtype), randn(K, E, W, seed=1)
    gate_up, down = randn(K, E, 2, F, W, dtype=dtype, seed=2) / W**0.5, randn(K, E, W, F, dtype=dtype, seed=3)
    got = ops.experts(x, router, ops.pack(gate_up), ops.pack(down), top_k, cap, F)
    close(got, plain.experts(x, router, gate_up, down, top_k, cap), dtype)


def test_experts_ties_go_to_the_lower_index(ops):
    x, router = torch.ones(1, 1, 4), torch.ones(1, 3, 4)
    gate_up, down = torch.ones(1, 3, 2, 4, 4), torch.ones(1, 3, 4, 4)
    gate_up[:, 2] = 100
    got = ops.experts(x, router, ops.pack(gate_up), ops.pack(down), 2, 0.0, 4)
    close(got, plain.experts(x, router[:, :2], gate_up[:, :2], down[:, :2], 2, 0.0), torch.float32)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 6, 8, 16])
def test_all_reduce_on_one_rank_is_the_tree(ops, dtype, K):
    x, before = randn(K, 37, 129, dtype=dtype), ops.reduces_seen()
    parts = list(x.float())
    while len(parts) > 1:
        parts = [sum(parts[i : i + 2][1:], parts[i]) for i in range(0, len(parts), 2)]
    assert torch.equal(ops.all_reduce(x, 1, 0.125), (parts[0] * 0.125).to(dtype)[None])
    assert ops.reduces_seen() == before + 1
    started = [ops.start_all_reduce(x * factor, 1, 0.125) for factor in (1, 2)]
    for factor in (2, 1):
        assert torch.equal(ops.finish_all_reduce(started[factor - 1]), ops.all_reduce(x * factor, 1, 0.125))


def test_mistakes_are_errors_with_names_and_numbers(ops):
    x, w = randn(1, 3, 32), ops.pack(randn(1, 32, 32))
    shape, qkv = Shape(), randn(1, 3, 512)
    cases = [
        (lambda: ops.linear(x, w, None, 48), r"linear: w must have shape \[1, 3, 32, 16\]"),
        (lambda: ops.linear(x.bfloat16(), w, None, 32), "linear: w must be BFloat16"),
        (lambda: ops.linear(x.int(), w, None, 32), "linear: x must be bfloat16 or float32"),
        (lambda: ops.all_reduce(x, 2, 0.5), "no communicator was set"),
        (lambda: ops.start_all_reduce(x, 2, 0.5), "no communicator was set"),
        (lambda: ops.finish_all_reduce(x), "this all-reduce was not started, or is finished"),
        (lambda: ops.linear_swiglu(x, w, 32), r"linear_swiglu: w must have shape \[1, 2, 2, 32, 16\]"),
        (lambda: plain.attend(shape, qkv, shape.cache(2), Batch.make([30], [3], [[0, 1]])), "beyond its 2 pages"),
        (lambda: plain.attend(shape, qkv, shape.cache(2), Batch.make([0], [3], [[2]])), "outside the cache's 2"),
        (lambda: plain.attend(shape, qkv, shape.cache(2), Batch.make([0], [2], [[0]])), "from 0 to the 3 tokens"),
        (
            lambda: plain.attend(shape, qkv, shape.cache(2).byte(), Batch.make([0], [3], [[0]])),
            r"attention: cache must have shape \[2, 2, 2, 1088\], has \[2, 2, 2, 1024\]",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
