"""The numerics contract: a token's result is a function of its own sequence only, to the bit."""

import itertools

import pytest
import torch

from tests.backends.embedded.kernels import plain
from tests.backends.embedded.kernels.plain import Batch, Shape, randn


def on_two_threads(call):
    torch.set_num_threads(2)
    try:
        return call()
    finally:
        torch.set_num_threads(1)


def rowwise(ops, dtype):
    """Ops whose tokens do not meet, with odd sizes: name -> (x [K, T, ..], op of x)."""
    K, T, W, F = 2, 23, 301, 77
    w, norm = ops.pack(randn(K, 99, W, dtype=dtype)), randn(K, W, dtype=dtype)
    table, first = ops.pack(randn(500, W, dtype=dtype)), torch.tensor([3])
    gate_up, down = ops.pack(randn(K, 4, 2, F, W, dtype=dtype)), ops.pack(randn(K, 4, W, F, dtype=dtype))
    router, swiglu = randn(K, 4, W), ops.pack(randn(K, 2, F, W, dtype=dtype) / W**0.5)
    x = randn(K, T, W, dtype=dtype)
    return {
        "linear": (x, lambda x: ops.linear(x, w, None, 99)),
        "head": (x[:1], lambda x: ops.head(x[0], table, first, 333)[None]),
        "rms_norm": (x, lambda x: ops.rms_norm(x, norm, 1e-5)),
        "linear_swiglu": (x, lambda x: ops.linear_swiglu(x, swiglu, F)),
        "experts": (x, lambda x: ops.experts(x, router, gate_up, down, 2, 0.0, F)),
        "all_reduce": (x, lambda x: ops.all_reduce(x, 1, 0.5)),
    }


@pytest.mark.parametrize("name", ["linear", "head", "rms_norm", "linear_swiglu", "experts", "all_reduce"])
def test_tokens_do_not_meet(ops, dtype, name):
    x, op = rowwise(ops, dtype)[name]
    whole = op(x)
    assert torch.equal(on_two_threads(lambda: op(x)), whole)
    for cut in range(1, x.shape[1]):
        assert torch.equal(torch.cat([op(x[:, :cut]), op(x[:, cut:])], 1), whole)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(op(x[:, order]), whole[:, order])


@pytest.mark.parametrize("inputs", [48, 700, 3000])
def test_products_have_one_order_for_every_number_of_rows(ops, dtype, inputs):
    """By the float32 results of `head`: after rounding to bfloat16, few would show another order."""
    x, table = randn(530, inputs, dtype=dtype), ops.pack(randn(80, inputs, dtype=dtype))
    first = torch.tensor([0])
    whole = ops.head(x, table, first, 80)
    for rows in [*range(1, 30), 31, 32, 33, 48, 255, 256, 257, 512]:
        assert torch.equal(ops.head(x[:rows], table, first, 80), whole[:rows]), rows


@pytest.mark.parametrize(
    "shape",
    [
        Shape(norm=True),
        Shape(tracks=2, window=37),
        Shape(heads=6, kv_heads=1, size=80),
        Shape(kv_heads=4, size=16, rope=False),
        Shape(norm=True, int8=True),
        Shape(heads=6, kv_heads=1, size=80, window=37, int8=True),
    ],
    ids=str,
)
def test_attention_is_a_function_of_the_sequence(ops, dtype, shape):
    shape = Shape(**{**shape.__dict__, "dtype": dtype})
    T = 150
    qkv = randn(shape.tracks, T, shape.width, dtype=dtype)
    other = randn(shape.tracks, 90, shape.width, dtype=dtype, seed=5)
    straight, shuffled = list(range(10)), [13, 2, 19, 5, 11, 0, 7, 16, 3, 8]
    whole = plain.attend(shape, qkv, shape.cache(10), Batch.make([0], [T], [straight]))

    def chunked(cuts, pages=shuffled):
        """The sequence in pieces, each call shared with pieces of another sequence."""
        cache, parts, met = shape.cache(20), [], 0
        for begin, end in itertools.pairwise([0, *cuts, T]):
            extra = min(3, 90 - met)
            rows = torch.cat([other[:, met : met + extra], qkv[:, begin:end]], 1)
            batch = Batch.make([met, begin], [extra, end - begin], [[1, 4, 6, 9, 10, 12][:6], pages])
            parts.append(plain.attend(shape, rows, cache, batch)[:, extra:])
            met += extra
        return torch.cat(parts, 1)

    assert torch.equal(on_two_threads(lambda: chunked([])), whole)
    for cut in range(1, T):
        assert torch.equal(chunked([cut]), whole), cut
    assert torch.equal(chunked(range(1, T)), whole)  # token by token
    assert torch.equal(chunked([16, 32, 33, 64, 128, 130]), whole)


@pytest.mark.parametrize("int8", [False, True])
def test_shared_pages(ops, dtype, int8):
    """Two sequences over one prefix equal two sequences with their own copies."""
    shape = Shape(dtype=dtype, int8=int8)
    prefix, tails = randn(1, 32, 512, dtype=dtype), [randn(1, 9, 512, dtype=dtype, seed=s) for s in (1, 2)]
    cache = shape.cache(6)
    plain.attend(shape, prefix, cache, Batch.make([0], [32], [[4, 2]]))
    both = plain.attend(shape, torch.cat(tails, 1), cache, Batch.make([32, 32], [9, 9], [[4, 2, 0], [4, 2, 5]]))
    for tail, got in zip(tails, both.split(9, 1), strict=True):
        rows = torch.cat([prefix, tail], 1)
        alone = plain.attend(shape, rows, shape.cache(3), Batch.make([0], [41], [[0, 1, 2]]))
        assert torch.equal(got, alone[:, 32:])


@pytest.mark.parametrize("int8", [False, True])
def test_window_reads_no_older_page(ops, dtype, int8):
    """A page that fell out of the window may have been given away."""
    shape = Shape(window=20, dtype=dtype, int8=int8)
    qkv, cache = randn(1, 100, 512, dtype=dtype), shape.cache(7)
    whole = plain.attend(shape, qkv, shape.cache(7), Batch.make([0], [100], [list(range(7))]))
    plain.attend(shape, qkv[:, :99], cache, Batch.make([0], [99], [list(range(7))]))
    cache[:, :5] = 255 if int8 else float("inf")
    last = plain.attend(shape, qkv[:, 99:], cache, Batch.make([99], [1], [[-1] * 5 + [5, 6]]))
    assert torch.equal(last, whole[:, 99:])
