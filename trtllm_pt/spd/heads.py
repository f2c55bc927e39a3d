"""Share the heads of attention out over the ranks, so that each rank's own heads stand for all of them.

A layer whose all-reduce is dropped computes its FFN from the heads of one rank. Which heads these are is free: heads
can be permuted, with their rows of q, k and v and their columns of the output projection, and the dense model stays the
same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.source import Source
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import TensorSpec
from trtllm_pt.network.reference import Layer

Order = tuple[int, ...]  # the head at each place; the heads of a KV head stay together

_PASSES = 3  # over all exchanges of two heads or groups


class GroupedHeads:
    """A dense `Source` with its heads in another order in some layers.

    The model computes the same function; only sums over heads are added in another order.
    """

    def __init__(self, dense: Source, orders: Mapping[int, Order]) -> None:
        self._dense = dense
        self._orders = {f"transformer.layers.{layer}.attention": order for layer, order in orders.items()}
        self.config: ModelConfig = dense.config
        self.dtype = dense.dtype
        self.tokenizer: Path | None = dense.tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        whole = self._dense.read(spec, track, dtype)
        order = self._orders.get(spec.name.rpartition(".")[0].rpartition(".")[0])
        if order is None or spec.split not in ("qkv", "heads_in"):
            return whole
        c = self.config
        if spec.split == "heads_in":
            return whole.reshape(-1, c.num_heads, c.head_size)[:, list(order)].flatten(1)
        kv = kv_order(c, order)
        heads = whole.reshape(-1, c.head_size, *whole.shape[1:])
        rows = [*order, *(c.num_heads + head for head in kv), *(c.num_heads + c.num_kv_heads + head for head in kv)]
        return heads[rows].flatten(0, 1)


def kv_order(config: ModelConfig, order: Order) -> list[int]:
    """Return the KV head at each place, which follows from the heads."""
    size = config.num_heads // config.num_kv_heads
    kv = [head // size for head in order[::size]]
    assert all(head // size == kv[place // size] for place, head in enumerate(order)), order
    return kv


def exchanges(config: ModelConfig, tracks: int) -> Iterator[tuple[range, range]]:
    """Yield pairs of places, of two KV groups or of two heads of a KV group, that are not on the same ranks."""
    size, per_rank = config.num_heads // config.num_kv_heads, config.num_heads // tracks
    groups = [range(start, start + size) for start in range(0, config.num_heads, size)]
    pairs = [*combinations(groups, 2)]
    pairs += [(range(a, a + 1), range(b, b + 1)) for group in groups for a, b in combinations(group, 2)]
    for first, second in pairs:
        if [place // per_rank for place in first] != [place // per_rank for place in second]:
            yield first, second


def exchanged(order: Order, first: range, second: range) -> Order:
    new = list(order)
    for a, b in zip(first, second, strict=True):
        new[a], new[b] = order[b], order[a]
    return tuple(new)


def best_order(dense: ModelConfig, layer: Layer, x: Tensor) -> Order:
    """Return an order of heads with a small error of the layer's output for x [B, S, W] without its all-reduce.

    It starts with the order that the layer has, and keeps every exchange that makes the error smaller.
    dense: the config of the model whose parts on the ranks are the tracks of `layer`.
    """
    tracks = layer.config.tracks
    outputs = head_outputs(layer, x)
    bias = layer.attention_shared.bias if layer.config.has_shared_bias else 0
    whole = x + outputs.sum(0) + bias
    target = layer.ffn_out(whole.expand(tracks, *whole.shape)).sum(0)

    def error(order: Order) -> float:
        own = outputs[list(order)].view(tracks, -1, *x.shape).sum(1)
        return float((layer.ffn_out(x + own + bias).sum(0) - target).square().mean())

    best: Order = tuple(range(dense.num_heads))
    least = error(best)
    for _ in range(_PASSES):
        before = best
        for first, second in exchanges(dense, tracks):
            order = exchanged(best, first, second)
            if (found := error(order)) < least:
                best, least = order, found
        if best == before:
            break
    return best


def head_outputs(layer: Layer, x: Tensor) -> Tensor:
    """Return what each head adds to the stream x [B, S, W], without the bias: [H, B, S, W] over all tracks."""
    config, seen = layer.config, list[Tensor]()
    hook = layer.attention.dense.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer.attention_out(x.expand(config.tracks, *x.shape))
    hook.remove()
    sizes = (config.num_heads, config.head_size)
    context = seen[0].view(*seen[0].shape[:-1], *sizes)  # [n, B, S, H, D]
    weight = layer.attention.dense.weight.view(*layer.attention.dense.weight.shape[:-1], *sizes)  # [n, W, H, D]
    return torch.einsum("nbshd,nwhd->nhbsw", context, weight.to(context.dtype)).flatten(0, 1)
