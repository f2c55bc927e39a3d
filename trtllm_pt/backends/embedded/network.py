"""The network of the embedded engine: the tracks of one rank on our own ops, run by the schedule walker.

Weights are buffers in the packed order of `trtllm_pt::pack`, or in that of codes.py if they are quantised. The graph is
the same for every rank: the rank is known only from the communicator. The output head is not part of the graph, because
its logits can be needed in pieces.

Shapes: T tokens in the step, B sequences, R rows of logits, P pages, M pages of the longest sequence, K tracks on this
rank, W hidden_size, G KV heads per track on this rank, D head_size, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trtllm_pt.backends.embedded.form import Form, Storage, packed_shape
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, rank_layout
from trtllm_pt.model.rope import attention_factor
from trtllm_pt.model.schedule import ReduceOp, Run, schedule_of
from trtllm_pt.network import walk
from trtllm_pt.network.module import Module

ops = torch.ops.trtllm_pt  # the ops have no types, hence the `type: ignore` comments


@dataclass(frozen=True, slots=True)
class Batch:
    """The sequences of a step, in any mix of prefill chunks and decode steps."""

    starts: Tensor  # int64 [B]: position of each sequence's first token in this step
    offsets: Tensor  # int64 [B + 1]: where each sequence's tokens begin and end
    pages: Tensor  # int64 [B, M]: each sequence's KV pages
    rotary: Tensor | None  # float32 [T, D]: cos, then sin, times the attention factor; None without RoPE
    caches: list[Tensor]  # of each layer (graph.cache_info)


class EmbeddedModel(Module):
    """The network of one rank of `ranks`, without the product of the output head, which the engine computes."""

    def __init__(self, config: ModelConfig, ranks: int, storage: Storage) -> None:
        super().__init__()
        layout = rank_layout(config, ranks)
        self.transformer = Transformer(config, layout, storage)
        self.lm_head = Head(config, layout, storage)

    def forward(
        self, tokens: Tensor, starts: Tensor, offsets: Tensor, pages: Tensor, rows: Tensor, caches: list[Tensor]
    ) -> Tensor:
        """Return the head's input [R, W] of the tokens at `rows`.

        tokens: int64 [T]. rows: int64 [R], indices into `tokens`. The other arguments are as in Batch.
        """
        stream: Tensor = self.transformer(tokens, starts, offsets, pages, rows, caches)
        return stream


class Transformer(Module):
    """The network without its output head."""

    layers: Sequence[Layer]
    inv_freq: Tensor | None

    def __init__(self, config: ModelConfig, layout: RankLayout, storage: Storage) -> None:
        super().__init__()
        self.dtype = dtype = storage.dtype
        self.config, self.ranks = config, layout.ranks
        self.schedule = schedule_of(config)
        self.vocab_embedding = Packed((), config.vocab_size, config.hidden_size, dtype, storage.embedding_form)
        layers = (Layer(config, layout, layer, storage) for layer in range(config.num_layers))
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]  # nn.ModuleList has no element type
        self.ln_f = Norm(1, config.hidden_size, config, dtype)
        if any(config.has_rope(layer) for layer in range(config.num_layers)):
            self.register_buffer("inv_freq", torch.empty(1, config.head_size // 2))
        else:
            self.inv_freq = None

    def forward(
        self, tokens: Tensor, starts: Tensor, offsets: Tensor, pages: Tensor, rows: Tensor, caches: list[Tensor]
    ) -> Tensor:
        """Return the normalised stream [R, W] of the tokens at `rows`."""
        rotary = None
        if self.inv_freq is not None:
            rotary = ops.rotary(tokens, starts, offsets, self.inv_freq[0])
            if (factor := attention_factor(self.config.rope_scaling)) != 1:
                rotary = rotary * factor
        batch = Batch(starts, offsets, pages, rotary, caches)
        embedding = self.vocab_embedding
        x = ops.gather_rows(tokens, embedding.weight, self.config.hidden_size, embedding.form, self.dtype)
        x = walk.walk(self.schedule, TrackOps(self, batch), x[None])
        return self.ln_f(x[:, rows])[0]


class TrackOps(walk.TrackOps[Tensor]):
    """The operations of the schedule walker. The shared stream is [1, T, W] and the tracks' own streams are [K, T, W].

    Without a dispatch norm, the first add broadcasts the shared stream to the tracks.
    """

    def __init__(self, transformer: Transformer, batch: Batch) -> None:
        super().__init__(transformer.config, transformer.layers)
        self.ranks, self.batch = transformer.ranks, batch

    def sublayer(self, run: Run, x: Tensor) -> Tensor:
        layer: Layer = self.layers[run.layer]
        return layer.attention_out(x, self.batch) if run.place == "attention" else layer.ffn_out(x)

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """Return the sum or mean over all tracks of all ranks, [1, T, W]. No other code of the network calls the op."""
        return ops.all_reduce(x, self.ranks, self._scale(op))  # type: ignore[no-any-return]

    def start_all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """Send this rank's part while other steps run, between ranks that share no memory."""
        return ops.start_all_reduce(x, self.ranks, self._scale(op))  # type: ignore[no-any-return]

    def finish_all_reduce(self, started: Tensor) -> Tensor:
        return ops.finish_all_reduce(started)  # type: ignore[no-any-return]

    def _scale(self, op: ReduceOp) -> float:
        return 1.0 / self.model.tracks if op == "mean" else 1.0

    def scale_mean(self, x: Tensor) -> Tensor:
        return x * (1.0 / self.model.tracks)


class Layer(Module):
    """The two sub-layers of a layer with their norms, without the residual adds."""

    def __init__(self, config: ModelConfig, layout: RankLayout, layer: int, storage: Storage) -> None:
        super().__init__()
        width, tracks, dtype = config.hidden_size, len(layout.tracks), storage.dtype
        self.config = config
        if config.dispatch_norm and config.starts_block(layer):
            self.dispatch_layernorm = Norm(tracks, width, config, dtype)
        self.input_layernorm = Norm(tracks, width, config, dtype)
        self.attention = Attention(config, layout, layer, storage)
        if config.has_shared_bias:
            self.attention_shared = Bias(width, dtype)
        self.post_layernorm = Norm(tracks, width, config, dtype)
        ffn = Experts if config.is_moe(layer) else GatedMLP
        self.mlp: Module = ffn(config, layout, storage)
        if config.residual_norm:
            self.attention_residual_layernorm = Norm(tracks, width, config, dtype)
            self.mlp_residual_layernorm = Norm(tracks, width, config, dtype)
        if config.combine_norm and config.ends_block(layer):
            self.combine_layernorm = Norm(tracks, width, config, dtype)

    def attention_out(self, x: Tensor, batch: Batch) -> Tensor:
        """Return the attention's output [K, T, W] for x [K, T, W], or [1, T, W] for the same x on all tracks."""
        out = self.attention(self.input_layernorm(x), batch)
        return self.attention_residual_layernorm(out) if self.config.residual_norm else out

    def shared_bias(self) -> Tensor:
        bias: Tensor = self.attention_shared.bias
        return bias

    def ffn_out(self, x: Tensor) -> Tensor:
        """Return the FFN's output [K, T, W] for x [K, T, W], or [1, T, W] for the same x on all tracks."""
        out = self.mlp(self.post_layernorm(x))
        return self.mlp_residual_layernorm(out) if self.config.residual_norm else out


class Attention(Module):
    """Attention over all heads of the rank. One op does QK norms, RoPE, KV cache and softmax."""

    def __init__(self, config: ModelConfig, layout: RankLayout, layer: int, storage: Storage) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads = len(layout.heads)
        tracks, size = len(layout.tracks), config.head_size
        rows = (self.heads + 2 * len(layout.kv_heads)) * size
        self.qkv = Linear(tracks, rows, config.hidden_size, storage, config.qkv_bias)
        self.dense = Linear(tracks, config.hidden_size, self.heads * size, storage, config.has_dense_bias)
        if config.qk_norm:
            self.q_layernorm = Norm(tracks, size, config, storage.dtype)
            self.k_layernorm = Norm(tracks, size, config, storage.dtype)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        c = self.config
        out = ops.attention(
            self.qkv(x),
            batch.rotary if c.has_rope(self.layer) else None,
            self.q_layernorm.weight if c.qk_norm else None,
            self.k_layernorm.weight if c.qk_norm else None,
            batch.caches[self.layer],
            batch.starts,
            batch.offsets,
            batch.pages,
            self.heads,
            c.head_size,
            c.layer_window(self.layer) or 0,
            c.norm_eps,
            c.qk_norm_after_rope,
        )
        return self.dense(out)


class GatedMLP(Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), with gate and up in one matrix product."""

    def __init__(self, config: ModelConfig, layout: RankLayout, storage: Storage) -> None:
        super().__init__()
        self.rows = len(layout.ffn)
        tracks, width = len(layout.tracks), config.hidden_size
        self.gate_up = Packed((tracks, 2), self.rows, width, storage.dtype, storage.form(width))
        self.down = Linear(tracks, width, self.rows, storage)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ops.linear_swiglu(x, self.gate_up.weight, self.rows, self.gate_up.form))


class Experts(Module):
    """The experts of each track, which are gated FFNs. A router chooses some of them for each token."""

    def __init__(self, config: ModelConfig, layout: RankLayout, storage: Storage) -> None:
        super().__init__()
        self.config, self.rows = config, len(layout.experts_ffn)
        tracks, width, experts = len(layout.tracks), config.hidden_size, config.num_experts
        self.router = Weight((tracks, experts, width), torch.float32)
        self.gate_up = Packed((tracks, experts, 2), self.rows, width, storage.dtype, storage.form(width))
        self.down = Packed((tracks, experts), width, self.rows, storage.dtype, storage.form(self.rows))

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        weights = (self.router.weight, self.gate_up.weight, self.down.weight)
        routing = (c.experts_per_token, c.router_logits_cap or 0.0, self.rows)
        return ops.experts(x, *weights, *routing, self.gate_up.form, self.down.form)  # type: ignore[no-any-return]


class Head(Module):
    """The weights of the output head for this rank's slice of the vocabulary. A tied head has none: it reads the
    embedding's rows from `first` on."""

    def __init__(self, config: ModelConfig, layout: RankLayout, storage: Storage) -> None:
        super().__init__()
        self.register_buffer("first", torch.empty(1, dtype=torch.int64))
        if not config.tie_embeddings:
            packed = Packed((), len(layout.vocab), config.hidden_size, storage.dtype, storage.embedding_form)
            self.register_buffer("weight", packed.weight)


class Linear(Module):
    """The product of x [K, T, I] with a packed weight, for each track."""

    def __init__(self, tracks: int, rows: int, columns: int, storage: Storage, bias: bool = False) -> None:
        super().__init__()
        self.rows = rows
        packed = Packed((tracks,), rows, columns, storage.dtype, storage.form(columns))
        self.form = packed.form
        self.register_buffer("weight", packed.weight)
        self.register_buffer("bias", torch.empty(tracks, rows, dtype=storage.dtype) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias, self.rows, self.form)  # type: ignore[no-any-return]


class Norm(Module):
    """RMSNorm of x [K, T, features], with a weight per track."""

    def __init__(self, tracks: int, features: int, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.register_buffer("weight", torch.empty(tracks, features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)  # type: ignore[no-any-return]


class Weight(Module):
    """A module that holds one buffer, `weight`."""

    weight: Tensor

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        # Tracing needs only shapes and never writes to the buffer, so even a huge weight takes no memory.
        self.register_buffer("weight", torch.empty(shape, dtype=dtype))


class Bias(Module):
    """A module that holds one buffer, `bias`, which is the same for all tracks."""

    bias: Tensor

    def __init__(self, features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("bias", torch.empty(features, dtype=dtype))


class Packed(Weight):
    """A buffer for a matrix [*lead, rows, columns] in packed order. `dtype` is the model's.

    form: the argument `form` of the ops; None if the matrix is not quantised.
    """

    def __init__(
        self, lead: tuple[int, ...], rows: int, columns: int, dtype: torch.dtype, form: Form | None = None
    ) -> None:
        super().__init__(packed_shape((*lead, rows, columns), dtype, form), dtype if form is None else torch.uint8)
        self.form = None if form is None else form.to_list()
