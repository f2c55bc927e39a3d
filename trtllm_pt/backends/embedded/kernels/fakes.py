"""The shapes of the ops' results, which torch.export needs to trace the graph.

Each function has the arguments of the op with its name and returns an empty tensor of the result's shape.

Shape letters: T tokens, K tracks, W hidden size, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trtllm_pt.backends.embedded.form import packed_shape

_registered = False


def register() -> None:
    """Register the shapes with torch. The op library must be loaded."""
    global _registered
    if _registered:
        return
    layers = (pack, linear, linear_swiglu, head, gather_rows, rms_norm, rotary, attention, experts)
    for fake in (*layers, all_reduce, start_all_reduce, finish_all_reduce):
        torch.library.register_fake(f"trtllm_pt::{fake.__name__}", fake)
    _registered = True


def pack(w: Tensor) -> Tensor:
    return w.new_empty(packed_shape(tuple(w.shape), w.dtype))


def linear(x: Tensor, w: Tensor, bias: Tensor | None, n: int, form: Sequence[int] | None = None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], n)


def linear_swiglu(x: Tensor, w: Tensor, n: int, form: Sequence[int] | None = None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], n)


def head(x: Tensor, table: Tensor, first: Tensor, n: int, form: Sequence[int] | None = None) -> Tensor:
    return x.new_empty(x.shape[0], n, dtype=torch.float32)


def gather_rows(
    ids: Tensor, table: Tensor, width: int, form: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    return table.new_empty(ids.shape[0], width, dtype=dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(weight.shape[0], x.shape[1], x.shape[2])


def rotary(tokens: Tensor, starts: Tensor, offsets: Tensor, inv_freq: Tensor) -> Tensor:
    return inv_freq.new_empty(tokens.shape[0], 2 * inv_freq.shape[0])


def attention(
    qkv: Tensor,
    rotary: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cache: Tensor,
    starts: Tensor,
    offsets: Tensor,
    pages: Tensor,
    heads: int,
    head_size: int,
    window: int,
    eps: float,
    norm_after_rope: bool,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], heads * head_size)


def experts(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    cap: float,
    intermediate: int,
    gate_up_form: Sequence[int] | None = None,
    down_form: Sequence[int] | None = None,
) -> Tensor:
    return x.new_empty(x.shape)


def all_reduce(x: Tensor, ranks: int, scale: float) -> Tensor:
    return x.new_empty(1, x.shape[1], x.shape[2])


def start_all_reduce(x: Tensor, ranks: int, scale: float) -> Tensor:
    return all_reduce(x, ranks, scale)


def finish_all_reduce(started: Tensor) -> Tensor:
    return started.new_empty(started.shape)
