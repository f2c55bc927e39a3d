"""The network of a training run: the layers of the reference network, run by the walker of schedules.

The tracks of a rank are computed side by side in batched products. With several ranks, each holds its share of the
tracks, or of the heads and FFN rows (parts.py). The reference network states the same mathematics once more; tests
compare the two.

Shapes: K tracks of this rank, B sequences, S tokens per sequence, W hidden_size, H heads, G KV heads, D head_size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from parts import initial_weights, local_config, part_of
from ranks import Ranks
from torch import Tensor

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.schedule import ReduceOp, Run, schedule_of
from trtllm_pt.network.module import Module
from trtllm_pt.network.reference import Layer, ReferenceModel, sliding_mask
from trtllm_pt.network.rope import rotary
from trtllm_pt.network.walk import TrackOps, walk


class TrainingModel(Module):
    """A rank's share of a model. Parameters have the names of `tensors(config)` and the shapes of the rank's parts."""

    def __init__(self, config: ModelConfig, ranks: Ranks, seed: int) -> None:
        super().__init__()
        self.config, self.ranks = config, ranks
        self.schedule = schedule_of(config)
        self.share = ReferenceModel(local_config(config, ranks.size, ranks.rank))
        layout, values = rank_layout(config, ranks.size, ranks.rank), dict(self.share.named_parameters())
        with torch.no_grad():
            for spec, whole in initial_weights(config, seed):
                values[spec.name].copy_(part_of(whole, spec, config, layout))

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the final hidden states [B, S, W] of `tokens` [B, S], with causal attention.

        kept: [n, B, S] or [n, B, 1], 1 for each of the model's n tracks that counts in the means at block boundaries,
        and 0 for the others; None if all count.
        """
        transformer = self.share.transformer
        x = F.embedding(tokens, transformer.vocab_embedding.weight)
        return transformer.ln_f(walk(self.schedule, _Ops(self, tokens, kept), x[None])[0])

    def nats(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy [N], in nats, of `targets` [N] after the hidden states [N, W]."""
        head = self.share.transformer.vocab_embedding if self.share.lm_head is None else self.share.lm_head
        return cross_entropy(hidden, head.weight, targets)


class _Ops(TrackOps[Tensor]):
    """The operations of the walker. A value per track is [K, B, S, W], and a shared one [1, B, S, W]."""

    def __init__(self, model: TrainingModel, tokens: Tensor, kept: Tensor | None) -> None:
        super().__init__(model.config, model.share.transformer.layers)
        self.ranks = model.ranks
        self.weights: Tensor | None = None  # of this rank's tracks in a mean, [K, B, S or 1, 1]
        if kept is not None:
            own = rank_layout(model.config, model.ranks.size, model.ranks.rank).tracks
            self.weights = (kept / kept.sum(0))[own.start : own.stop, ..., None]
        # Whatever does not change is made once here, and not again in every layer.
        place = torch.arange(tokens.shape[1], device=tokens.device)
        cos, sin = rotary(model.config, place, torch.float32)
        self.turns = torch.stack((cos, cos), 1), torch.stack((-sin, sin), 1)
        self.masks: dict[int | None, Tensor] = {}
        for layer in range(model.config.num_layers):
            window = model.config.layer_window(layer)
            if window not in self.masks:
                seen = sliding_mask(len(place), window or len(place), tokens.device)
                self.masks[window] = torch.zeros(seen.shape, device=tokens.device).masked_fill(~seen, float("-inf"))

    def sublayer(self, run: Run, x: Tensor) -> Tensor:
        if run.place == "ffn":
            return ffn(self.layers[run.layer], x)
        return attention(self.layers[run.layer], x, *self.turns, self.masks[self.model.layer_window(run.layer)])

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        if op == "mean" and self.weights is not None:
            return self.ranks.all_reduce((x * self.weights).sum(0, keepdim=True))
        total = self.ranks.all_reduce(x.sum(0, keepdim=True))
        return self.scale_mean(total) if op == "mean" else total

    def scale_mean(self, x: Tensor) -> Tensor:
        return x / self.model.tracks


# Sub-layers are compiled one by one, which takes less time than compiling the network: the layers share their code. The
# walker and the all-reduces run in between. A sub-layer has several forms: its input is shared or per track, it is
# trained or only measured, and layers differ in window and FFN.
torch.compiler.config.recompile_limit = 64


@torch.compile(dynamic=False)
def ffn(layer: Layer, x: Tensor) -> Tensor:
    """Return the output of an FFN with its norms, [K, B, S, W], for x [K or 1, B, S, W]."""
    return layer.ffn_out(x)


@torch.compile(dynamic=False)
def attention(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """Return the output of an attention with its norms, [K, B, S, W], for x [K or 1, B, S, W].

    cos, sin: [S, 2, D/2], the factors of a head's elements and of the same with its halves exchanged.
    mask: [S, S], added to the scores.
    The heads that read the same KV head are rows of one product. Softmax is in float32.
    """
    part, c = layer.attention, layer.config
    qkv = part.qkv(layer.input_layernorm(x))
    tracks, batch, length, _ = qkv.shape
    heads = [c.num_heads, c.num_kv_heads, c.num_kv_heads]
    q, k, v = qkv.view(tracks, batch, length, -1, c.head_size).transpose(2, 3).split(heads, 2)
    if c.qk_norm and not c.qk_norm_after_rope:
        q, k = part.q_layernorm(q), part.k_layernorm(k)
    if part.has_rope:
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
    if c.qk_norm_after_rope:
        q, k = part.q_layernorm(q), part.k_layernorm(k)
    q, k, v = (value.reshape(tracks * batch * c.num_kv_heads, -1, c.head_size) for value in (q, k, v))
    scores = torch.bmm(q, k.mT).view(len(q), -1, length, length).float() * c.head_size**-0.5 + mask
    out = torch.bmm(scores.softmax(-1).view(len(q), -1, length).to(v.dtype), v)
    out = out.view(tracks, batch, c.num_heads, length, c.head_size).transpose(2, 3).flatten(3)
    out = part.dense(out)
    return layer.attention_residual_layernorm(out) if c.residual_norm else out


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [..., S, D], as `rotate` does, but in a form that compiles to vector code."""
    halves = x.unflatten(-1, (2, -1))
    return (halves * cos + halves.flip(-2) * sin).to(x.dtype).flatten(-2)


@torch.compile(dynamic=False)
def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ head.mT).float(), targets, reduction="none")
