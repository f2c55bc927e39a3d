"""A decoder written from the formulas alone, in float64: the reference and the schedule walker are not in it.

`logits(config, weights, tokens)` takes the tensors of a model directory and returns [S, V]. Some schedules and features
are enough, because the reference network is compared with everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trtllm_pt.model.config import ModelConfig


def logits(config: ModelConfig, weights: Mapping[str, Tensor], tokens: list[int]) -> Tensor:
    wide = {name: tensor.double() for name, tensor in weights.items()}
    x = wide["transformer.vocab_embedding.weight"][tokens]
    x = {"pt": _parallel_tracks, "tp": _dense, "spd": _sync_point_drop}[config.schedule](config, wide, x)
    head = wide.get("lm_head.weight", wide["transformer.vocab_embedding.weight"])
    return _norm(config, x, wide["transformer.ln_f.weight"]) @ head.T


def _dense(c: ModelConfig, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    for i in range(c.num_layers):
        x = x + _attention(c, w, i, 0, x)
        x = x + _ffn(c, w, i, 0, x)
    return x


def _parallel_tracks(c: ModelConfig, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Each block of D layers is run by every track on its own; then the tracks' streams are merged."""
    assert c.block_depth is not None
    for first in range(0, c.num_layers, c.block_depth):
        block = range(first, min(first + c.block_depth, c.num_layers))
        streams = []
        for track in range(c.tracks):
            h = x
            if c.dispatch_norm:
                h = _norm(c, h, w[f"transformer.layers.{block[0]}.dispatch_layernorm.weight"][track])
            for i in block:
                h = h + _attention(c, w, i, track, h)
                h = h + _ffn(c, w, i, track, h)
            if c.combine_norm:
                h = _norm(c, h, w[f"transformer.layers.{block[-1]}.combine_layernorm.weight"][track])
            streams.append(h)
        merged = torch.stack(streams).sum(0)
        x = merged / c.tracks if c.combine == "mean" else merged
    return x


def _sync_point_drop(c: ModelConfig, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """In a dropped layer, Y_i = X + P_i + b, Z_i = FFN_i(Y_i) + P_i and X' = X + sum_i Z_i + b, for tracks i."""
    for i in range(c.num_layers):
        b = w[f"transformer.layers.{i}.attention_shared.bias"] if c.output_bias else torch.zeros_like(x[0])
        p = [_attention(c, w, i, track, x) for track in range(c.tracks)]
        if i in c.dropped_layers:
            z = [_ffn(c, w, i, track, x + own + b) + own for track, own in enumerate(p)]
            x = x + torch.stack(z).sum(0) + b
        else:
            y = x + torch.stack(p).sum(0) + b
            x = y + torch.stack([_ffn(c, w, i, track, y) for track in range(c.tracks)]).sum(0)
    return x


def _norm(c: ModelConfig, x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.norm_eps) * weight


def _attention(c: ModelConfig, w: Mapping[str, Tensor], i: int, track: int, h: Tensor) -> Tensor:
    name, size = f"transformer.layers.{i}.", c.head_size
    y = _norm(c, h, w[f"{name}input_layernorm.weight"][track])
    qkv = y @ w[f"{name}attention.qkv.weight"][track].T
    if c.qkv_bias:
        qkv = qkv + w[f"{name}attention.qkv.bias"][track]
    heads = qkv.view(len(h), -1, size)
    outputs = []
    for head in range(c.num_heads):
        group = head // (c.num_heads // c.num_kv_heads)
        q, k = heads[:, head], heads[:, c.num_heads + group]
        v = heads[:, c.num_heads + c.num_kv_heads + group]
        if c.qk_norm and not c.qk_norm_after_rope:
            q, k = _qk_norms(c, w, name, track, q, k)
        if c.has_rope(i):
            q, k = _rotated(c, q), _rotated(c, k)
        if c.qk_norm_after_rope:
            q, k = _qk_norms(c, w, name, track, q, k)
        rows = []
        for at in range(len(h)):
            window = c.layer_window(i)
            first = 0 if window is None else max(0, at - window + 1)
            scores = torch.softmax(k[first : at + 1] @ q[at] / math.sqrt(size), 0)
            rows.append(scores @ v[first : at + 1])
        outputs.append(torch.stack(rows))
    out = torch.cat(outputs, 1) @ w[f"{name}attention.dense.weight"][track].T
    return out + w[f"{name}attention.dense.bias"][track] if c.schedule == "tp" and c.output_bias else out


def _qk_norms(
    c: ModelConfig, w: Mapping[str, Tensor], name: str, track: int, q: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    q = _norm(c, q, w[f"{name}attention.q_layernorm.weight"][track])
    return q, _norm(c, k, w[f"{name}attention.k_layernorm.weight"][track])


def _rotated(c: ModelConfig, x: Tensor) -> Tensor:
    """Pairs (j, j + D/2) turn by position times theta^(-2j/D), the angle rounded to float32 as all engines round it."""
    assert c.rope_scaling is None
    half = c.head_size // 2
    frequency = torch.tensor([c.rope_theta ** (-2 * j / c.head_size) for j in range(half)]).float()
    angle = torch.arange(len(x)).float()[:, None] * frequency
    cos, sin = angle.cos().double(), angle.sin().double()
    a, b = x[:, :half], x[:, half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), 1)


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _ffn(c: ModelConfig, w: Mapping[str, Tensor], i: int, track: int, h: Tensor) -> Tensor:
    name = f"transformer.layers.{i}."
    y = _norm(c, h, w[f"{name}post_layernorm.weight"][track])
    if c.is_moe(i):
        return torch.stack([_experts(c, w, f"{name}mlp.", track, row) for row in y])
    gate, up = (y @ w[f"{name}mlp.{which}.weight"][track].T for which in ("fc", "gate"))
    return (_silu(gate) * up) @ w[f"{name}mlp.proj.weight"][track].T


def _experts(c: ModelConfig, w: Mapping[str, Tensor], name: str, track: int, y: Tensor) -> Tensor:
    """One token's experts: the k with the largest router logits, weighted by a softmax over these."""
    router = w[f"{name}router.weight"][track] @ y
    if c.router_logits_cap is not None:
        router = c.router_logits_cap * torch.tanh(router / c.router_logits_cap)
    chosen = sorted(range(c.num_experts), key=lambda e: -float(router[e]))[: c.experts_per_token]
    shares = torch.softmax(router[chosen], 0)
    total = torch.zeros_like(y)
    for share, e in zip(shares, chosen, strict=True):
        up, gate = (w[f"{name}fc.weight"][track, e] @ y).chunk(2)
        total = total + share * (w[f"{name}proj.weight"][track, e] @ (_silu(gate) * up))
    return total
