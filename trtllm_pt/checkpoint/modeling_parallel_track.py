"""Parallel Track (PT) Transformers and their relatives for Hugging Face's transformers. This file needs nothing else.

A PT model (arXiv:2602.07306) is divided into narrow Transformers, its tracks, which exchange their results only every
few layers. On several machines each exchange is one all-reduce; here all tracks are in one process, and an exchange is
a sum or a mean over the first axis. `Streams` has the rules: which sub-layers read what, and what happens after each.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Every weight of a track is stacked with those of the other tracks, and every matrix product is batched over the tracks.
To attention the tracks are more heads: heads attend independently of each other, so transformers' implementations and
KV caches work without a change.

Shapes: n tracks, B sequences, S tokens of each, W hidden_size, H heads and G KV heads of a track, D head_size,
E experts of a track, I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple

# The fields of config.json and their defaults. All sizes are those of one track.
_FIELDS: dict[str, Any] = {
    "num_layers": None,
    "hidden_size": None,
    "num_heads": None,
    "num_kv_heads": None,
    "head_size": None,
    "intermediate_size": None,
    "vocab_size": None,
    "max_position_embeddings": 2048,
    "tracks": 1,
    "schedule": "tp",  # tp, pt, spd, desync, parallel, ladder or dtp
    "block_depth": None,  # pt: layers from one exchange to the next
    "sync_every": None,  # desync: the same
    "delay": None,  # dtp: sub-layers that run before the other tracks' outputs of one arrive
    "dropped_layers": (),  # spd: layers without an exchange after attention
    "combine": "mean",  # pt: an exchange is the mean or the sum of the tracks' streams
    "dispatch_norm": False,  # pt: each track has a norm after an exchange
    "combine_norm": False,  # pt: each track has a norm before an exchange
    "attention_pattern": (
        "global",
    ),  # of layer i: global, sliding, global_nope or sliding_nope, at i modulo the length
    "window": None,  # tokens that a sliding layer attends to, including the current token
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "qk_norm": False,
    "qk_norm_after_rope": False,
    "residual_norm": False,  # a norm on the output of each sub-layer
    "norm_eps": 1e-5,
    "qkv_bias": False,
    "output_bias": False,
    "ffn_pattern": ("dense",),  # of layer i: dense or moe, at i modulo the length
    "num_experts": 0,
    "experts_per_token": 0,
    "moe_intermediate_size": 0,
    "router_logits_cap": None,  # c: the router's logits become c * tanh(logits / c)
    "tie_embeddings": False,
}


class ParallelTrackConfig(PretrainedConfig):
    """The configuration of a model with tracks."""

    model_type = "parallel_track"
    attribute_map = {  # noqa: RUF012  transformers' own declaration
        "num_hidden_layers": "num_layers",
        "head_dim": "head_size",
        "sliding_window": "window",
        "tie_word_embeddings": "tie_embeddings",
    }
    keys_to_ignore_at_inference = ("cache", "past_key_values")
    has_no_defaults_at_init = True
    rope_scaling = None  # hides a property of this name in transformers 5, which keeps RoPE's keys elsewhere

    def __init__(self, use_cache: bool = True, **values: Any) -> None:
        super().__init__(**{key: value for key, value in values.items() if key not in _FIELDS})
        self.use_cache = use_cache
        for name, default in _FIELDS.items():
            setattr(self, name, values.get(name, default))

    @property
    def num_attention_heads(self) -> int:
        return self.tracks * self.num_heads

    @property
    def num_key_value_heads(self) -> int:
        return self.tracks * self.num_kv_heads

    @property
    def layer_types(self) -> list[str]:
        """The kind of each layer's mask and KV cache, in the words of transformers."""
        kinds = [self.attention_kind(layer) for layer in range(self.num_layers)]
        return ["sliding_attention" if kind.startswith("sliding") else "full_attention" for kind in kinds]

    @property
    def has_shared_bias(self) -> bool:
        """Whether the bias of the attention output stands outside of the sum over the tracks."""
        return self.output_bias and self.schedule == "spd"

    @property
    def has_dense_bias(self) -> bool:
        """Whether the output projection of attention adds the bias itself."""
        return self.output_bias and not self.has_shared_bias

    def attention_kind(self, layer: int) -> str:
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def is_moe(self, layer: int) -> bool:
        return self.ffn_pattern[layer % len(self.ffn_pattern)] == "moe"

    def starts_block(self, layer: int) -> bool:
        """Return whether the layer is the first one after an exchange of schedule pt or desync."""
        return layer % (self.block_depth or self.sync_every or self.num_layers) == 0

    def ends_block(self, layer: int) -> bool:
        """Return whether such an exchange follows the layer. The last block may be shorter than the others."""
        return self.starts_block(layer + 1) or layer + 1 == self.num_layers


class ParallelTrackForCausalLM(PreTrainedModel, GenerationMixin):
    """A model with tracks and its output head."""

    config: ParallelTrackConfig
    config_class = ParallelTrackConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]  # noqa: RUF012
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "transformer.vocab_embedding.weight"}  # noqa: RUF012

    def __init__(self, config: ParallelTrackConfig) -> None:
        super().__init__(config)
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if any(config.is_moe(layer) for layer in range(config.num_layers)):
            self._keep_in_fp32_modules_strict = {"router"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.vocab_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.vocab_embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module that no file has weights for."""
        if isinstance(module, Norm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Bias):
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.Linear, Weight)):
            nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits [B, S, V] of `input_ids` [B, S], and the loss if there are `labels` [B, S].

        attention_mask: [B, tokens so far], 0 for padding; or a mask per kind of layer, as `generate` prepares it for
        static caches. cache: the name that `past_key_values` has from transformers 5.24 on.
        """
        cache = past_key_values if cache is None else cache
        x = self.transformer.vocab_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if self.transformer.gradient_checkpointing and self.training:
            cache = None  # the layers run again in the backward pass, and would add to the cache again
        elif cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        cache_position = kwargs.pop("cache_position", None)  # transformers 4 passes it
        if cache_position is None:
            past = 0 if cache is None else cache.get_seq_length()
            cache_position = torch.arange(x.shape[1], device=x.device) + past
        if position_ids is None:
            position_ids = cache_position[None]
        if isinstance(attention_mask, dict):
            masks = attention_mask
        else:
            masks = _masks(self.config, x, attention_mask, cache, cache_position, position_ids)
        hidden = self.transformer(x, masks, position_ids, cache, cache_position)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        states: dict[str, Any] = {_CACHE: cache}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **states)


_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def _masks(
    config: ParallelTrackConfig,
    x: Tensor,
    mask: Tensor | None,
    cache: Cache | None,
    cache_position: Tensor,
    position_ids: Tensor,
) -> dict[str, Tensor | None]:
    """Return the attention mask of each kind of layer that the model has."""
    given: dict[str, Any] = {
        "config": config,
        "attention_mask": mask,
        "position_ids": position_ids,
        "cache_position": cache_position,
    }
    # Releases of transformers have different names for these two.
    given |= {"inputs_embeds": x, "input_embeds": x, "cache": cache, "past_key_values": cache}
    makers: dict[str, Callable[..., Tensor | None]] = {
        "full_attention": create_causal_mask,
        "sliding_attention": create_sliding_window_causal_mask,
    }
    masks = {}
    for kind in set(config.layer_types):
        known = inspect.signature(makers[kind]).parameters
        masks[kind] = makers[kind](**{name: value for name, value in given.items() if name in known})
    return masks


class Transformer(nn.Module):
    """The model without its output head."""

    layers: Sequence[Layer]

    def __init__(self, config: ParallelTrackConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.vocab_embedding: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = (Layer(config, layer) for layer in range(config.num_layers))
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]  # nn.ModuleList has no element type
        self.ln_f = Norm(config, config.hidden_size)
        self.frequencies = rope_frequencies(config)

    def forward(
        self,
        x: Tensor,
        masks: dict[str, Tensor | None],
        position_ids: Tensor,
        cache: Cache | None,
        cache_position: Tensor,
    ) -> Tensor:
        """Return the normalised stream [B, S, W] for the embedded tokens x [B, S, W]."""
        rotary = self.rotary(position_ids, x.dtype)
        streams = Streams(self.config, x)
        kinds = self.config.layer_types
        for number, layer in enumerate(self.layers):
            if self.config.dispatch_norm and self.config.starts_block(number):
                streams.own = layer.dispatch_layernorm(streams.own)
            for place in ("attention", "ffn"):
                output = layer(
                    streams.read(),
                    place=place,
                    rotary=rotary,
                    mask=masks[kinds[number]],
                    cache=cache,
                    cache_position=cache_position,
                )
                streams.write(number, place, output, layer)
        return self.ln_f(streams.finish())

    def rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cos and sin of RoPE's angles, [B, S, 1, D/2], times the scaling's factor of attention."""
        frequencies = torch.tensor(self.frequencies, device=position_ids.device)
        angles = position_ids[..., None, None].float() * frequencies
        factor = attention_factor(self.config.rope_scaling)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


class Streams:
    """The residual streams of a forward pass: one that the tracks share, and each track's own.

    A track adds the outputs of its sub-layers to its own stream. At an exchange, the tracks' outputs or whole streams
    become part of the shared stream, and each track goes on with a copy of it. Schedules differ in where they exchange
    and what.
    """

    def __init__(self, config: ParallelTrackConfig, x: Tensor) -> None:
        self.config = config
        self.shared = x  # [B, S, W]
        self.own = x.expand(config.tracks, *x.shape)  # [n, B, S, W]
        self.outputs: list[Tensor] = []  # of each track since the last exchange, [n, B, S, W]
        self.late: Tensor | None = None  # ladder: the last output, which the next sub-layer does not see

    def read(self) -> Tensor:
        """Return what the next sub-layer of each track reads, [n, B, S, W].

        In `parallel` and `ladder` it reads the shared stream, so that two sub-layers, or a sub-layer and an exchange,
        can run at the same time.
        """
        if self.config.schedule in ("parallel", "ladder"):
            return self.shared.expand(self.config.tracks, *self.shared.shape)
        return self.own

    def write(self, layer: int, place: str, output: Tensor, norms: Layer) -> None:
        """Add the output of a sub-layer to each track's stream, and exchange if the schedule says so here."""
        if place == "attention" and norms.shared_bias is not None:
            self.shared, self.own = self.shared + norms.shared_bias, self.own + norms.shared_bias
        before, self.own = self.own, self.own + output
        self.outputs.append(output)
        match self.config.schedule:
            case "ladder":  # an all-reduce runs during the next sub-layer, so its result comes one sub-layer later
                self.share(self.finish())
                self.late = output.sum(0)
            case "pt" if place == "ffn" and self.config.ends_block(layer):
                own = norms.combine_layernorm(self.own) if self.config.combine_norm else self.own
                self.share(own.mean(0) if self.config.combine == "mean" else own.sum(0))
            case "desync" if place == "ffn" and self.config.ends_block(layer):
                self.share(output.sum(0) + before.mean(0))
            case "spd" if place == "ffn" or layer not in self.config.dropped_layers:
                self.share(self.shared + torch.stack(self.outputs).sum((0, 1)))
            case "dtp" if len(self.outputs) > self.config.delay:
                late = self.outputs.pop(0)
                self.own = self.own + (late.sum(0) - late)
            case "parallel" if place == "ffn":
                self.share(self.shared + torch.stack(self.outputs).sum((0, 1)))
            case "tp":
                self.share(self.shared + output.sum(0))

    def share(self, shared: Tensor) -> None:
        self.shared, self.outputs = shared, []
        self.own = shared.expand(self.config.tracks, *shared.shape)

    def finish(self) -> Tensor:
        """Return the shared stream with all outputs so far."""
        if self.config.schedule == "dtp":
            return (self.own + sum(late.sum(0) - late for late in self.outputs)).mean(0)
        return self.shared if self.late is None else self.shared + self.late


class Layer(GradientCheckpointingLayer):
    """The two sub-layers of a layer, attention and a feed-forward network (FFN), with their norms.

    A call computes one of them, without the residual add.
    """

    def __init__(self, config: ParallelTrackConfig, layer: int) -> None:
        super().__init__()
        width, tracks = config.hidden_size, config.tracks
        if config.dispatch_norm and config.starts_block(layer):
            self.dispatch_layernorm = Norm(config, width, tracks)
        self.input_layernorm = Norm(config, width, tracks)
        self.attention = Attention(config, layer)
        if config.has_shared_bias:
            self.attention_shared = Bias(width)
        self.post_layernorm = Norm(config, width, tracks)
        self.mlp = Experts(config) if config.is_moe(layer) else GatedMLP(config)
        self.has_residual_norm = config.residual_norm
        if config.residual_norm:
            self.attention_residual_layernorm = Norm(config, width, tracks)
            self.mlp_residual_layernorm = Norm(config, width, tracks)
        if config.combine_norm and config.ends_block(layer):
            self.combine_layernorm = Norm(config, width, tracks)

    @property
    def shared_bias(self) -> Tensor | None:
        """The bias of the attention output [W], if it is added to the shared stream and to each track's own."""
        return self.attention_shared.bias if hasattr(self, "attention_shared") else None

    def forward(self, x: Tensor, place: str, **attention: Any) -> Tensor:
        """Return the output [n, B, S, W] of the sub-layer `place` for x [n, B, S, W].

        attention: the arguments of Attention.forward.
        """
        if place == "attention":
            out = self.attention(self.input_layernorm(x), **attention)
            return self.attention_residual_layernorm(out) if self.has_residual_norm else out
        out = self.mlp(self.post_layernorm(x))
        return self.mlp_residual_layernorm(out) if self.has_residual_norm else out


class Attention(nn.Module):
    """Grouped-query attention of every track, as one call with n * H heads."""

    is_causal = True

    def __init__(self, config: ParallelTrackConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.has_rope = not config.attention_kind(layer).endswith("nope")
        self.window = config.window if config.attention_kind(layer).startswith("sliding") else None
        self.num_key_value_groups = config.num_heads // config.num_kv_heads
        inner, rows = config.num_heads * config.head_size, config.num_heads + 2 * config.num_kv_heads
        self.qkv = Linear(config.tracks, rows * config.head_size, config.hidden_size, bias=config.qkv_bias)
        self.dense = Linear(config.tracks, config.hidden_size, inner, bias=config.has_dense_bias)
        if config.qk_norm:
            self.q_layernorm = Norm(config, config.head_size, config.tracks)
            self.k_layernorm = Norm(config, config.head_size, config.tracks)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor,
    ) -> Tensor:
        """Return [n, B, S, W] for x [n, B, S, W]."""
        c = self.config
        heads = self.qkv(x).unflatten(-1, (-1, c.head_size))  # [n, B, S, H + 2 G, D]
        q, k, v = heads.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], 3)
        if c.qk_norm and not c.qk_norm_after_rope:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        if self.has_rope:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if c.qk_norm_after_rope:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        q, k, v = (part.permute(1, 0, 3, 2, 4).flatten(1, 2) for part in (q, k, v))  # [B, n * H or n * G, S, D]
        own = v
        if cache is not None:
            k, v = cache.update(k, v, self.layer, {"cache_position": cache_position})
        if self.window == 1:  # each token attends to itself, but transformers' DynamicCache returns all tokens
            out = own.repeat_interleave(self.num_key_value_groups, 1).transpose(1, 2)
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get(c._attn_implementation, eager_attention)
            out, _ = attend(self, q, k, v, mask, scaling=c.head_size**-0.5, sliding_window=self.window)
        out = out.unflatten(2, (c.tracks, c.num_heads))  # [B, S, n, H, D]
        return self.dense(out.permute(2, 0, 1, 3, 4).flatten(3))


def eager_attention(
    module: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Attention written out: [B, S, heads, D] and the weights [B, heads, S, keys]."""
    key, value = (part.repeat_interleave(module.num_key_value_groups, 1) for part in (key, value))
    scores = query @ key.mT * scaling
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class GatedMLP(nn.Module):
    """SwiGLU (arXiv:2002.05202). In the files, `fc` is the matrix of the gate and `gate` is the one beside it."""

    def __init__(self, config: ParallelTrackConfig) -> None:
        super().__init__()
        tracks, width, rows = config.tracks, config.hidden_size, config.intermediate_size
        self.fc = Linear(tracks, rows, width)
        self.gate = Linear(tracks, rows, width)
        self.proj = Linear(tracks, width, rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc(x)) * self.gate(x))


class Experts(nn.Module):
    """A mixture of experts in each track. A track's router chooses experts by their logits, and weights them by a
    softmax over those of the chosen ones."""

    def __init__(self, config: ParallelTrackConfig) -> None:
        super().__init__()
        tracks, experts = config.tracks, config.num_experts
        width, rows = config.hidden_size, config.moe_intermediate_size
        self.config = config
        self.router = Weight(tracks, experts, width)  # float32 in every model
        self.fc = Weight(tracks, experts, 2 * rows, width)  # the rows beside the gate, then those of the gate
        self.proj = Weight(tracks, experts, width, rows)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)  # [n, B * S, W]
        logits = tokens.float() @ self.router.weight.float().mT
        if (cap := self.config.router_logits_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        # Of equal logits the lower index is chosen, which topk does not promise.
        logits, chosen = logits.sort(dim=-1, descending=True, stable=True)
        chosen = chosen[..., : self.config.experts_per_token]
        weights = logits[..., : self.config.experts_per_token].softmax(-1).to(x.dtype)
        out = torch.zeros_like(tokens)
        for track, expert in product(range(self.config.tracks), range(self.config.num_experts)):
            token, place = torch.where(chosen[track] == expert)
            if len(token):
                up, gate = F.linear(tokens[track, token], self.fc.weight[track, expert]).chunk(2, -1)
                output = F.linear(F.silu(gate) * up, self.proj.weight[track, expert])
                out[track].index_add_(0, token, output * weights[track, token, place, None])
        return out.view(x.shape)


class Weight(nn.Module):
    """A module that holds one parameter, `weight`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class Linear(Weight):
    """A matrix [O, I] of each track, and a bias [O] of each: x [n, B, S, I] -> [n, B, S, O]."""

    def __init__(self, tracks: int, outputs: int, inputs: int, bias: bool = False) -> None:
        super().__init__(tracks, outputs, inputs)
        self.bias = nn.Parameter(torch.empty(tracks, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = torch.bmm(x.flatten(1, 2), self.weight.mT)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return out.unflatten(1, x.shape[1:3])


class Bias(nn.Module):
    """A module that holds one parameter, `bias`, which is the same for all tracks."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(features))


class Norm(nn.Module):
    """RMSNorm (arXiv:1910.07467) over the last axis, in float32. Weights per track belong to the first axis of x."""

    def __init__(self, config: ParallelTrackConfig, features: int, tracks: int | None = None) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(features) if tracks is None else torch.empty(tracks, features))

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if weight.dim() == 2:
            weight = weight.view(len(weight), *[1] * (x.dim() - 2), -1)
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [n, B, S, heads, D], which pairs element i with element i + D/2."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def rope_frequencies(config: ParallelTrackConfig) -> list[float]:
    """Return RoPE's D/2 angles per position (arXiv:2104.09864, eq. 15), with the config's scaling.

    Of type `dynamic`, frequencies change only beyond max_position_embeddings, for which no model here was trained.
    """
    half = range(config.head_size // 2)
    frequencies = [config.rope_theta ** (-2 * i / config.head_size) for i in half]
    scaling: dict[str, Any] = config.rope_scaling or {"rope_type": "default"}
    match scaling["rope_type"]:
        case "linear":
            kept = [0.0 for _ in half]
        case "llama3":
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            turns = [scaling["original_max_position_embeddings"] * f / (2 * math.pi) for f in frequencies]
            kept = [_clamp((t - low) / (high - low)) for t in turns]
        case "yarn":
            kept = _yarn_kept(config, scaling)
        case _:
            return frequencies
    # Of each frequency a part is kept, and the rest is divided by the factor.
    return [f * keep + f / scaling["factor"] * (1 - keep) for f, keep in zip(frequencies, kept)]  # noqa: B905


def _yarn_kept(config: ParallelTrackConfig, scaling: dict[str, Any]) -> list[float]:
    """Return the part of each frequency that YaRN keeps (arXiv:2309.00071, section 3.2): all of those that turn more
    than beta_fast times within the original positions, nothing of those that turn fewer than beta_slow times."""

    def index(turns: float) -> float:
        """Return the index, not rounded, of the frequency that turns so many times."""
        length = scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return config.head_size * math.log(length) / (2 * math.log(config.rope_theta))

    first: float
    last: float
    first, last = index(scaling.get("beta_fast", 32.0)), index(scaling.get("beta_slow", 1.0))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_size - 1)
    width = last - first or 0.001
    return [1 - _clamp((i - first) / width) for i in range(config.head_size // 2)]


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def attention_factor(scaling: dict[str, Any] | None) -> float:
    """Return the factor of queries and keys that comes with YaRN (arXiv:2309.00071, section 3.4)."""
    if scaling is None or scaling["rope_type"] != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    return 1.0 if scaling["factor"] <= 1 else 0.1 * math.log(scaling["factor"]) + 1.0
