"""The reference network: trainable, with all tracks in one process and every schedule's formula written out.

Engines are compared with it. It does not use walk.py, so that a mistake there shows as a difference.

Shapes: n tracks, B sequences, S tokens per sequence, V vocabulary, W hidden_size, H heads, D head_size, E experts, and
I inputs and O outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.module import Module
from trtllm_pt.network.rope import rotary, rotate


class ReferenceModel(Module):
    """The whole model of a config. Parameters have the names and global shapes of `tensors(config)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = None if config.tie_embeddings else Weight(config.vocab_size, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [B, S, V] of `tokens` [B, S], with causal attention."""
        head = self.transformer.vocab_embedding if self.lm_head is None else self.lm_head
        return self.transformer(tokens) @ head.weight.mT


class Transformer(Module):
    """The model without its output head: tokens [B, S] -> hidden states [B, S, W]."""

    layers: Sequence[Layer]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embedding = Weight(config.vocab_size, config.hidden_size)
        # nn.ModuleList has no element type.
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))  # type: ignore[assignment]
        self.ln_f = Norm(config, config.hidden_size, per_track=False)
        self.streams: Callable[[Tensor], Tensor] = getattr(self, f"_{config.schedule}")

    def forward(self, tokens: Tensor) -> Tensor:
        return self.ln_f(self.streams(F.embedding(tokens, self.vocab_embedding.weight)))

    # One method per schedule. x is the shared stream [B, S, W], h the tracks' own streams [n, B, S, W].

    def _tp(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer.attention_out(x[None]).sum(0)
            x = x + layer.ffn_out(x[None]).sum(0)
        return x

    def _pt(self, x: Tensor) -> Tensor:
        """Run arXiv:2602.07306, Algorithm 1, with the reset of h inside the condition."""
        n, depth, last = self.config.tracks, self.config.block_depth, self.config.num_layers
        assert depth is not None
        h = x.expand(n, *x.shape)
        for number, layer in enumerate(self.layers, start=1):
            if self.config.dispatch_norm and (number - 1) % depth == 0:
                h = layer.dispatch_layernorm(h)
            h = h + layer.attention_out(h)
            h = h + layer.ffn_out(h)
            if number % depth == 0 or number == last:
                if self.config.combine_norm:
                    h = layer.combine_layernorm(h)
                x = h.mean(0) if self.config.combine == "mean" else h.sum(0)
                h = x.expand(n, *x.shape)
        return x

    def _spd(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer.spd_block(x, number in self.config.dropped_layers)
        return x

    def _desync(self, x: Tensor) -> Tensor:
        """Compute x <- sum_r f_r(x_r) + mean_r x_r at an all-reduce, and x_r <- f_r(x_r) + x_r elsewhere
        (arXiv:2501.06589's code)."""
        n, every, last = self.config.tracks, self.config.sync_every, self.config.num_layers
        assert every is not None
        h = x.expand(n, *x.shape)
        for number, layer in enumerate(self.layers, start=1):
            h = h + layer.attention_out(h)
            f = layer.ffn_out(h)
            if number % every == 0 or number == last:
                x = f.sum(0) + h.mean(0)
                h = x.expand(n, *x.shape)
            else:
                h = h + f
        return x

    def _dtp(self, x: Tensor) -> Tensor:
        """Compute X_m <- X_{m-1} + o_m + sum of the other tracks' o_{m-delay} over sub-layers m, for each track
        (arXiv:2609.13846). After the last one, what is still missing is added."""
        n, delay = self.config.tracks, self.config.delay
        assert delay is not None
        h, late = x.expand(n, *x.shape), list[Tensor]()
        for layer in self.layers:
            for sub_layer in (layer.attention_out, layer.ffn_out):
                own = sub_layer(h)
                h = h + own
                late.append(own.sum(0) - own)
                if len(late) > delay:
                    h = h + late.pop(0)
        return (h + sum(late)).mean(0)

    def _parallel(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + (layer.attention_out(x[None]) + layer.ffn_out(x[None])).sum(0)
        return x

    def _ladder(self, x: Tensor) -> Tensor:
        """Compute x_{i+1} = h_{i+1}(x_{i-1}) + x_i over sub-layers i, x_{-1} = x_0 (arXiv:2501.06589, section 4.1)."""
        before, now = x, x
        for layer in self.layers:
            for sub_layer in (layer.attention_out, layer.ffn_out):
                before, now = now, now + sub_layer(before[None]).sum(0)
        return now


class Layer(Module):
    """The two sub-layers of a layer with their norms, without the residual adds."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, depth = config.hidden_size, config.block_depth or config.num_layers
        self.config = config
        if config.dispatch_norm and layer % depth == 0:
            self.dispatch_layernorm = Norm(config, width)
        self.input_layernorm = Norm(config, width)
        self.attention = Attention(config, layer)
        if config.has_shared_bias:
            self.attention_shared = Bias(width)
        self.post_layernorm = Norm(config, width)
        self.mlp: Module = Experts(config) if config.is_moe(layer) else GatedMLP(config)
        if config.residual_norm:
            self.attention_residual_layernorm = Norm(config, width)
            self.mlp_residual_layernorm = Norm(config, width)
        if config.combine_norm and ((layer + 1) % depth == 0 or layer + 1 == config.num_layers):
            self.combine_layernorm = Norm(config, width)

    def spd_block(self, x: Tensor, is_dropped: bool) -> Tensor:
        """Run a layer of arXiv:2502.20727, Fig. 2, on the shared stream x [B, S, W]: in a dropped one, the FFN reads
        only its own track's attention output.

        The bias b is outside of the sum over the tracks, and each track adds it to its own stream.
        """
        n = self.config.tracks
        p = self.attention_out(x.expand(n, *x.shape))
        b = self.attention_shared.bias if self.config.has_shared_bias else 0
        if is_dropped:
            return x + (self.ffn_out(x + p + b) + p).sum(0) + b
        y = x + p.sum(0) + b
        return y + self.ffn_out(y.expand(n, *y.shape)).sum(0)

    def attention_out(self, h: Tensor) -> Tensor:
        """Return the attention's output for h [n, B, S, W], to be added to h."""
        out = self.attention(self.input_layernorm(h))
        return self.attention_residual_layernorm(out) if self.config.residual_norm else out

    def ffn_out(self, h: Tensor) -> Tensor:
        """Return the FFN's output for h [n, B, S, W], to be added to h."""
        out = self.mlp(self.post_layernorm(h))
        return self.mlp_residual_layernorm(out) if self.config.residual_norm else out


class Attention(Module):
    """Causal grouped-query attention, x [n, B, S, W] -> [n, B, S, W]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        n, inner = config.tracks, config.num_heads * config.head_size
        self.config, self.window, self.has_rope = config, config.layer_window(layer), config.has_rope(layer)
        self.qkv = Linear(n, config.qkv_size, config.hidden_size, config.qkv_bias)
        self.dense = Linear(n, config.hidden_size, inner, config.has_dense_bias)
        self.kv_cache = nn.Identity()  # sees K and V as an engine caches them; calibration hooks into it
        if config.qk_norm:
            self.q_layernorm = Norm(config, config.head_size)
            self.k_layernorm = Norm(config, config.head_size)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        n, batch, length, _ = x.shape
        sizes = [heads * c.head_size for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads)]
        # [n, B, H, S, D] each
        q, k, v = (
            part.view(n, batch, length, -1, c.head_size).transpose(2, 3) for part in torch.split(self.qkv(x), sizes, -1)
        )
        if c.qk_norm and not c.qk_norm_after_rope:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        if self.has_rope:
            cos, sin = rotary(c, torch.arange(length, device=x.device), x.dtype)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if c.qk_norm_after_rope:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        k, v = self.kv_cache(k), self.kv_cache(v)
        group = c.num_heads // c.num_kv_heads
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        mask = None if self.window is None else sliding_mask(length, self.window, x.device)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.dense(out.view(n, batch, *out.shape[1:]).transpose(2, 3).flatten(3))


class GatedMLP(Module):
    """SwiGLU (arXiv:2002.05202): down(silu(gate(x)) * up(x)). The attributes have the names of the tensors in files."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n, width, rows = config.tracks, config.hidden_size, config.intermediate_size
        self.fc = Linear(n, rows, width)
        self.gate = Linear(n, rows, width)
        self.proj = Linear(n, width, rows)

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.fc, self.gate, self.proj
        return down(F.silu(gate(x)) * up(x))


class Experts(Module):
    """A mixture of experts in each track.

    The router chooses the top k experts by their logits, soft-capped if the config says so; a softmax over the chosen
    logits gives the experts' weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n, width, rows, experts = config.tracks, config.hidden_size, config.moe_intermediate_size, config.num_experts
        self.config = config
        self.router = Weight(n, experts, width)
        self.fc = ExpertLinear(n, experts, 2 * rows, width)  # the rows of up, then those of the gate
        self.proj = ExpertLinear(n, experts, width, rows)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.einsum("nbsw,new->nbse", x, self.router.weight.to(x.dtype)).to(
            torch.promote_types(x.dtype, torch.float32)
        )
        if self.config.router_logits_cap is not None:
            logits = self.config.router_logits_cap * torch.tanh(logits / self.config.router_logits_cap)
        # Of equal logits the lower index is chosen. topk chooses in an order that depends on the number of experts.
        best, order = logits.sort(stable=True, dim=-1, descending=True)
        chosen, experts = (part[..., : self.config.experts_per_token] for part in (best, order))
        weights = torch.zeros_like(logits).scatter(-1, experts, chosen.softmax(-1)).to(x.dtype)
        # Every expert computes every token: simple, and exact because experts that are not chosen have weight 0.
        up, gate = self.fc(x[..., None, :]).chunk(2, -1)
        hidden = F.silu(gate) * up * (weights != 0)[..., None]
        return torch.einsum("nbsew,nbse->nbsw", self.proj(hidden), weights)


class Linear(Module):
    """The product of x [n, ..., I] with the transposed weight [n, O, I], for each track."""

    def __init__(self, tracks: int, rows: int, columns: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tracks, rows, columns))
        self.bias = nn.Parameter(torch.empty(tracks, rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = torch.bmm(x.flatten(1, -2), self.weight.mT)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.view(*x.shape[:-1], out.shape[-1])


class ExpertLinear(Module):
    """The product of x [n, B, S, E or 1, I] with the transposed weight [n, E, O, I], for each track and expert."""

    def __init__(self, tracks: int, experts: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tracks, experts, rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nbsei,neoi->nbseo", x, self.weight)


class Norm(Module):
    """RMSNorm (arXiv:1910.07467) over the last axis of x [n, ..., I], computed in float32 or a wider dtype."""

    def __init__(self, config: ModelConfig, features: int, per_track: bool = True) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(config.tracks, features) if per_track else torch.empty(features))

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if weight.dim() == 2:
            weight = weight.view(-1, *[1] * (x.dim() - 2), weight.shape[-1])
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * weight).to(x.dtype)


class Weight(Module):
    """A module that holds one parameter, `weight`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class Bias(Module):
    """A module that holds one parameter, `bias`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(features))


def sliding_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return a mask [S, S] that is true where position i attends to j: at the last `window` positions up to i."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < window)
