"""The GPTAttention plugin: packed tokens, paged cache, causal, sliding windows, RoPE, grouped heads, FP8.

    T tokens of all requests   n tokens of one   H, G heads, KV heads   D head size

What was read in TensorRT-LLM's C++ sources (1.3.0rc3):
- the inputs and their order (gptAttentionPlugin.cpp, isEntryUsed); requests with a prompt first; lengths;
- a window counts the current token (fmha_v2's masks, XQA, decoderMaskedMultiheadAttention);
- prompts are rotated by the table, generated tokens by the frequencies;
- a prompt attends to the cache where `use_paged_context_fmha` is set, else to what was just computed, and then cannot
  come in chunks; in FP8 it rounds q, k, v by the cache's scale and writes FP8 (attentionOp.cpp);
- a generated token finds its own key and value in the cache, rounded as that is (XQA).
Left out: how kernels round probabilities and partial sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.attention_inputs import FP8_KV_CACHE, ROPE_GPT_NEOX, named_inputs
from tests.backends.tensorrt_llm.checkout.execute.cache import PagedCache, Pages
from tests.backends.tensorrt_llm.checkout.execute.values import ExecutionError, to_fp8
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer
from tests.backends.tensorrt_llm.checkout.tensorrt.plugins import Plugin


@dataclass(frozen=True)
class Request:
    """A request's part of the step."""

    number: int
    first: int  # of the packed tokens
    count: int
    total: int  # tokens in the cache after this step
    is_context: bool

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.total - self.count, self.total)


def attention(layer: ILayer, cache: PagedCache, *values: Tensor) -> Tensor:
    """qkv [T, (H + 2 G) D] and the runtime's inputs -> [T, H D]."""
    plugin, inputs = layer.plugin, named_inputs(layer, values)
    call = _Call(plugin, inputs, cache)
    requests = _requests(inputs)
    tokens = sum(request.count for request in requests)
    if tokens != inputs["qkv"].shape[0]:
        raise ExecutionError(f"{layer.name}: the requests hold {tokens} tokens, qkv {inputs['qkv'].shape[0]}")
    return torch.cat([call.run(request) for request in requests])


def _requests(inputs: dict[str, Tensor]) -> list[Request]:
    types = inputs["host_request_types"].tolist()  # 0 context, 1 generation
    if types != sorted(types):
        raise ExecutionError("context requests must come before those that generate")
    requests, first = [], 0
    for number, kind in enumerate(types):
        count = 1 if kind else int(inputs["host_context_lengths"][number])
        if not kind and int(inputs["context_lengths"][number]) != count:
            raise ExecutionError("context_lengths and host_context_lengths differ")
        requests.append(Request(number, first, count, int(inputs["sequence_length"][number]), not kind))
        first += count
    return requests


class _Call:
    """One execution of the plugin."""

    def __init__(self, plugin: Plugin, inputs: dict[str, Tensor], cache: PagedCache) -> None:
        self.plugin, self.inputs = plugin, inputs
        self.heads, self.kv_heads, self.size = (
            plugin.scalar(name) for name in ("num_heads", "num_kv_heads", "head_size")
        )
        number = plugin.scalar("layer_idx")
        self.window = int(inputs["host_max_attention_window_sizes"][number])
        self.pool, pool_layer = inputs["host_kv_cache_pool_mapping"][number].tolist()
        self.cache = cache.layer(self.pool, pool_layer, self.kv_heads, self.size)
        self.is_fp8_cache = bool(plugin.scalar("kv_cache_quant_mode") & FP8_KV_CACHE)

    def run(self, request: Request) -> Tensor:
        q, k, v = self.rotated(request)
        offsets = self.inputs["kv_cache_block_offsets"][self.pool, request.number]
        pages = [Pages(self.cache, numbers) for numbers in offsets]
        for page, new in zip(pages, (k, v), strict=True):
            page.write(request.positions, self.into_cache(new))
        reads_cache = not request.is_context or self.plugin.scalar("use_paged_context_fmha")
        if reads_cache:
            k, v = (self.out_of_cache(page.read(request.total)) for page in pages)
        elif request.count != request.total:
            raise ExecutionError("without paged context attention a prompt cannot come in chunks")
        if request.is_context and self.plugin.scalar("use_fp8_context_fmha"):
            q, k, v = (self.out_of_cache(self.into_cache(part)) for part in (q, k, v))
        out = self.attend(request, q, k, v).reshape(request.count, -1)
        if self.plugin.scalar("use_fp8_context_fmha"):
            return to_fp8(out * self.inputs["attention_output_orig_quant_scale"])
        return out

    def rotated(self, request: Request) -> tuple[Tensor, Tensor, Tensor]:
        """The request's q [n, H, D] and k, v [n, G, D]."""
        qkv = self.inputs["qkv"][request.first : request.first + request.count]
        if "qkv_bias" in self.inputs:
            qkv = qkv + self.inputs["qkv_bias"]
        split = qkv.split([heads * self.size for heads in (self.heads, self.kv_heads, self.kv_heads)], dim=-1)
        q, k, v = (part.reshape(request.count, -1, self.size) for part in split)
        if "rotary_inv_freq" not in self.inputs:
            return q, k, v
        # Float32, as the kernels; the context kernels' table was checked to hold the same.
        angles = request.positions[:, None].float() * self.inputs["rotary_inv_freq"].float().reshape(-1)
        is_neox = self.plugin.scalar("position_embedding_type") == ROPE_GPT_NEOX
        return _rotate(q, angles, is_neox), _rotate(k, angles, is_neox), v

    def into_cache(self, values: Tensor) -> Tensor:
        return to_fp8(values * self.inputs["kv_orig_quant_scale"]) if self.is_fp8_cache else values

    def out_of_cache(self, values: Tensor) -> Tensor:
        return values * self.inputs["kv_quant_orig_scale"] if self.is_fp8_cache else values

    def attend(self, request: Request, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, H, D], k and v [total, G, D] -> [n, H, D]."""
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / (math.sqrt(self.size) * self.plugin.scalar("q_scaling"))
        distance = request.positions[:, None] - torch.arange(request.total)
        is_seen = (distance >= 0) & (distance < self.window)
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~is_seen, -math.inf).softmax(-1), v)


def _rotate(x: Tensor, angles: Tensor, is_neox: bool) -> Tensor:
    """x [n, heads, D] by angles [n, r/2]; the first r values of a head are turned, by halves or by neighbours."""
    cos, sin = (part.to(x.dtype)[:, None] for part in (angles.cos(), angles.sin()))
    turned, kept = x.split([2 * angles.shape[-1], x.shape[-1] - 2 * angles.shape[-1]], dim=-1)
    a, b = turned.chunk(2, -1) if is_neox else (turned[..., 0::2], turned[..., 1::2])
    pair = (a * cos - b * sin, b * cos + a * sin)
    return torch.cat([*pair, kept], -1) if is_neox else torch.cat([torch.stack(pair, -1).flatten(-2), kept], -1)
