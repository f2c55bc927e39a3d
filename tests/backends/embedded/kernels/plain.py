"""The ops in plain PyTorch, float64 inside: what the kernels are compared with, and helpers to call them.

Shape letters: T tokens, K tracks, W width, H heads, G KV heads, D head size, B sequences, P cache pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PAGE = 16


def as_stored(x: Tensor) -> Tensor:
    """x [.., I] in int8 with a scale for each row, as float64."""
    x = x.float()
    most = x.abs().amax(-1, keepdim=True)
    codes = (x * (127 / most.clamp(min=1e-30))).round().where(most > 0, 0)
    return codes.double() * (most / 127).double()


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Compare with a float64 result: a few units of the last place of the largest values."""
    tolerance = 2e-5 if dtype == torch.float32 else 1.6e-2
    assert torch.isfinite(got).all()
    scale = want.abs().amax().item() + 1e-30
    error = ((got.double() - want).abs() / (scale * 0.25 + want.abs())).amax().item()
    assert error < tolerance, f"relative error {error:.2e} above {tolerance:.0e}"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


def linear_swiglu(x: Tensor, w: Tensor) -> Tensor:
    """x [.., T, W], w [.., 2, F, W]: gate, up."""
    gate, up = (x.double().unsqueeze(-3) @ w.double().mT).unbind(-3)
    return gate * torch.sigmoid(gate) * up


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x [.., T, heads, D], table [T, D] = cos | sin."""
    cos, sin = table.double().unsqueeze(-2).chunk(2, -1)
    low, high = x.double().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


@dataclass
class Batch:
    """Sequences of a call: where each starts, how many new tokens it has, its pages."""

    starts: Tensor
    offsets: Tensor
    pages: Tensor

    @staticmethod
    def make(starts: list[int], counts: list[int], pages: list[list[int]]) -> Batch:
        width = max(map(len, pages))
        rows = [row + [0] * (width - len(row)) for row in pages]
        offsets = torch.tensor([0, *counts]).cumsum(0)
        return Batch(torch.tensor(starts), offsets, torch.tensor(rows))


@dataclass(frozen=True)
class Shape:
    """An attention layer."""

    tracks: int = 1
    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    window: int = 0
    rope: bool = True
    norm: bool = False
    norm_last: bool = False  # after RoPE
    dtype: torch.dtype = torch.float32
    int8: bool = False  # the cache

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.size

    def cache(self, pages: int) -> Tensor:
        """Filled with NaN, as whatever the last owner left."""
        lanes = self.tracks * self.kv_heads
        if self.int8:  # bytes of 255 are codes of -1, and scales that are NaN
            return torch.full((2, pages, lanes, PAGE * (self.size + 4)), 255, dtype=torch.uint8)
        return torch.full((2, pages, lanes, PAGE * self.size), float("nan"), dtype=self.dtype)

    def norms(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.norm:
            return None, None
        return tuple(1 + 0.1 * randn(self.tracks, self.size, seed=s, dtype=self.dtype) for s in (1, 2))  # type: ignore


INV_FREQ = {size: 10000.0 ** (-torch.arange(0, size, 2).float() / size) for size in (16, 32, 64, 80, 128)}


def attend(shape: Shape, qkv: Tensor, cache: Tensor, batch: Batch) -> Tensor:
    """One call of the op."""
    ops = torch.ops.trtllm_pt
    tokens = torch.zeros(qkv.shape[1], dtype=torch.int64)
    table = ops.rotary(tokens, batch.starts, batch.offsets, INV_FREQ[shape.size]) if shape.rope else None
    q_norm, k_norm = shape.norms()
    return ops.attention(
        qkv, table, q_norm, k_norm, cache, batch.starts, batch.offsets, batch.pages,
        shape.heads, shape.size, shape.window, 1e-5, shape.norm_last,
    )  # fmt: skip


def int8(x: Tensor) -> Tensor:
    """What an int8 cache keeps of x [.., D], with a scale for each row."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def attention(shape: Shape, qkv: Tensor) -> Tensor:
    """A whole sequence [K, T, (H + 2G) D] without a cache -> [K, T, H D]."""
    K, T, _ = qkv.shape
    H, G, D = shape.heads, shape.kv_heads, shape.size
    q, k, v = qkv.double().view(K, T, H + 2 * G, D).split([H, G, G], 2)
    q_norm, k_norm = shape.norms()
    if q_norm is not None and k_norm is not None and not shape.norm_last:
        q, k = (rms_norm(x, w[:, None, None], 1e-5) for x, w in ((q, q_norm), (k, k_norm)))
    if shape.rope:
        angles = torch.arange(T)[:, None].float() * INV_FREQ[D]
        table = torch.cat([angles.double().cos(), angles.double().sin()], -1)
        q, k = rotate(q, table), rotate(k, table)
    if q_norm is not None and k_norm is not None and shape.norm_last:
        q, k = (rms_norm(x, w[:, None, None], 1e-5) for x, w in ((q, q_norm), (k, k_norm)))
    if shape.int8:
        k, v = (int8(x) for x in (k, v))
    k, v = (x.repeat_interleave(H // G, 2) for x in (k, v))
    scores = torch.einsum("kthd,kshd->khts", q, k) * D**-0.5
    age = torch.arange(T)[:, None] - torch.arange(T)
    seen = (age >= 0) & ((age < shape.window) if shape.window else (age >= 0))
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("khts,kshd->kthd", weights, v).reshape(K, T, H * D)


def experts(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, top_k: int, cap: float) -> Tensor:
    """Weights unpacked: gate_up [K, E, 2, F, W], down [K, E, W, F]."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for k in range(x.shape[0]):
        logits = x[k].double() @ router[k].double().T
        if cap:
            logits = cap * torch.tanh(logits / cap)
        best, chosen = logits.topk(top_k)
        for t in range(x.shape[1]):
            for weight, e in zip(best[t].softmax(-1), chosen[t].tolist(), strict=True):
                hidden = linear_swiglu(x[k, t, None], gate_up[k, e]).to(x.dtype)
                out[k, t] += weight * (down[k, e].double() @ hidden[0].double())
    return out
