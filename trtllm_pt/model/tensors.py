"""Every weight of a model: its name, its shape, and how it is divided over the ranks.

Names are TensorRT-LLM's. In a MODEL_DIR a per-track weight has a leading track axis. A rank's file has that axis only
if the rank holds more than one track.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, Span

EMBEDDING, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"

# A gated FFN computes down(silu(gate(x)) * up(x)). Files have TensorRT-LLM's names, which call the gate matrix `fc` and
# the up matrix `gate`. Everywhere else, "gate" is the matrix whose output passes through the activation.
GATE, UP, DOWN = "mlp.fc.weight", "mlp.gate.weight", "mlp.proj.weight"
UP_GATE = "mlp.fc.weight"  # experts have one matrix with the rows of up, followed by those of the gate

SHARED_BIAS = "attention_shared.bias"  # of the attention output, where it is added to the shared stream

# How a weight is divided over the ranks: by heads (of q, k and v, or of the output projection's inputs), by FFN rows or
# inputs, by vocabulary rows, or not at all. `TensorSpec.rows` has the axes.
Split = Literal["none", "qkv", "heads_in", "ffn", "ffn_pair", "ffn_in", "vocab", "first_rank"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One weight of the whole model, over all tracks and ranks."""

    name: str
    shape: tuple[int, ...]  # without the track axis
    per_track: bool
    split: Split = "none"
    kind: Literal["norm", "embedding", "matrix", "output", "router", "bias", "scale"] = "matrix"
    fan_in: int = 0  # inputs of a matrix, which set the scale of its initial values
    group: int = 1  # inputs of a matrix that one value of the last axis stands for; more than 1 only for a scale

    def global_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Return the shape in a MODEL_DIR, with the track axis of a per-track weight."""
        return (config.tracks, *self.shape) if self.per_track else self.shape

    def rank_shape(self, config: ModelConfig, layout: RankLayout) -> tuple[int, ...]:
        """Return the shape in a rank's checkpoint file."""
        axis, rows = self.rows(config, layout)
        shape = list(self.shape)
        if rows is not None:
            shape[axis] = sum(len(span) for span in rows)
        tracks = len(layout.tracks)
        return (tracks, *shape) if self.per_track and tracks > 1 else tuple(shape)

    def rows(self, config: ModelConfig, layout: RankLayout) -> tuple[int, list[Span] | None]:
        """Return the divided axis of `shape` and the spans of it that the rank holds, or None if it holds all of it."""
        match self.split:
            case "qkv":
                size, heads, kv = config.head_size, layout.heads, layout.kv_heads
                first_k = config.num_heads * size
                first_v = first_k + config.num_kv_heads * size
                return 0, [_scaled(heads, size), _scaled(kv, size, first_k), _scaled(kv, size, first_v)]
            case "heads_in":
                return 1, [self._groups(_scaled(layout.heads, config.head_size))]
            case "ffn":
                return 0, [layout.ffn]
            case "ffn_in" if len(self.shape) == 3:
                return 2, [self._groups(layout.experts_ffn)]
            case "ffn_in":
                return 1, [self._groups(layout.ffn)]
            case "ffn_pair":  # UP_GATE
                up = layout.experts_ffn
                return 1, [up, Span(up.start + config.moe_intermediate_size, up.stop + config.moe_intermediate_size)]
            case "vocab":
                return 0, [layout.vocab]
        return 0, None

    def _groups(self, inputs: Span) -> Span:
        return Span(inputs.start // self.group, inputs.stop // self.group)


def _scaled(span: Span, size: int, first: int = 0) -> Span:
    return Span(first + span.start * size, first + span.stop * size)


def tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """Yield all weights in the order of the forward pass. A tied output head is not listed apart from the embedding."""
    width = config.hidden_size
    yield TensorSpec(EMBEDDING, (config.vocab_size, width), False, kind="embedding")
    for layer in range(config.num_layers):
        yield from _layer(config, layer)
    yield TensorSpec("transformer.ln_f.weight", (width,), False, kind="norm")
    if not config.tie_embeddings:
        yield TensorSpec(HEAD, (config.vocab_size, width), False, "vocab", fan_in=width)


def rank_tensors(config: ModelConfig) -> Iterator[TensorSpec]:
    """Yield the weights of a rank's file. Unlike `tensors`, they include a tied output head, because a rank's slice of
    the vocabulary cannot share the whole embedding."""
    yield from tensors(config)
    if config.tie_embeddings:
        yield TensorSpec(HEAD, (config.vocab_size, config.hidden_size), False, "vocab", fan_in=config.hidden_size)


def _layer(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    width, size = config.hidden_size, config.head_size
    prefix = f"transformer.layers.{layer}."

    def norm(name: str, features: int = width) -> TensorSpec:
        return TensorSpec(f"{prefix}{name}.weight", (features,), True, kind="norm")

    if config.dispatch_norm and config.starts_block(layer):
        yield norm("dispatch_layernorm")
    yield norm("input_layernorm")
    yield TensorSpec(f"{prefix}attention.qkv.weight", (config.qkv_size, width), True, "qkv", fan_in=width)
    if config.qkv_bias:
        yield TensorSpec(f"{prefix}attention.qkv.bias", (config.qkv_size,), True, "qkv", "bias")
    if config.qk_norm:
        yield norm("attention.q_layernorm", size)
        yield norm("attention.k_layernorm", size)
    inner = config.num_heads * size
    yield TensorSpec(f"{prefix}attention.dense.weight", (width, inner), True, "heads_in", "output", fan_in=inner)
    if config.has_shared_bias:
        yield TensorSpec(f"{prefix}{SHARED_BIAS}", (width,), False, kind="bias")
    elif config.output_bias:
        # The sum over ranks must contain the bias once, so rank 0 holds it and the other ranks hold zeros.
        yield TensorSpec(f"{prefix}attention.dense.bias", (width,), True, "first_rank", "bias")
    if config.residual_norm:
        yield norm("attention_residual_layernorm")
    yield norm("post_layernorm")
    yield from _experts(config, prefix) if config.is_moe(layer) else _dense_ffn(config, prefix)
    if config.residual_norm:
        yield norm("mlp_residual_layernorm")
    if config.combine_norm and config.ends_block(layer):
        yield norm("combine_layernorm")


def _dense_ffn(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    width, rows = config.hidden_size, config.intermediate_size
    yield TensorSpec(f"{prefix}{GATE}", (rows, width), True, "ffn", fan_in=width)
    yield TensorSpec(f"{prefix}{UP}", (rows, width), True, "ffn", fan_in=width)
    yield TensorSpec(f"{prefix}{DOWN}", (width, rows), True, "ffn_in", "output", fan_in=rows)


def _experts(config: ModelConfig, prefix: str) -> Iterator[TensorSpec]:
    width, rows, experts = config.hidden_size, config.moe_intermediate_size, config.num_experts
    yield TensorSpec(f"{prefix}mlp.router.weight", (experts, width), True, "none", "router", fan_in=width)
    yield TensorSpec(f"{prefix}{UP_GATE}", (experts, 2 * rows, width), True, "ffn_pair", fan_in=width)
    yield TensorSpec(f"{prefix}{DOWN}", (experts, width, rows), True, "ffn_in", "output", fan_in=rows)
