"""The TensorRT-LLM network of one rank, run by the schedule walker. Plain `trtllm-build --model_cls_file` can use it.

One track per rank consists of TensorRT-LLM's stock layers. Several tracks are computed with batched products and one
attention call over all their heads, so that the KV cache has its usual geometry. Without TensorRT-LLM this module can
be imported, and constructing a config or a model raises UsageError.

Shapes: T packed tokens, K tracks on this rank, W hidden_size, H heads and G KV heads per track on this rank,
D head_size, I inputs and O outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trtllm_pt.errors import INSTALL_TENSORRT_LLM, UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, padded_vocab_size, rank_layout
from trtllm_pt.model.quantization import QUANT_ALGOS
from trtllm_pt.model.rope import attention_factor
from trtllm_pt.model.schedule import ReduceOp, Run, schedule_of, unordered
from trtllm_pt.network import walk

try:
    from tensorrt_llm._common import default_net
    from tensorrt_llm.functional import (
        AllReduceParams,
        AllReduceStrategy,
        AttentionMaskType,
        LayerNormType,
        PositionEmbeddingType,
        RotaryScalingType,
        Tensor,
        allreduce,
        cast,
        concat,
        constant,
        gpt_attention,
        gt,
        index_select,
        matmul,
        rms_norm,
        select,
        silu,
        split,
        stack,
        tanh,
        unsqueeze,
        where,
    )
    from tensorrt_llm.functional import sum as reduce_sum
    from tensorrt_llm.layers import MOE, Attention, ColumnLinear, Embedding, GatedMLP, MoeConfig, RmsNorm
    from tensorrt_llm.mapping import Mapping
    from tensorrt_llm.models import MODEL_MAP
    from tensorrt_llm.models.modeling_utils import DecoderModelForCausalLM, PretrainedConfig
    from tensorrt_llm.module import Module, ModuleList
    from tensorrt_llm.parameter import Parameter
    from tensorrt_llm.quantization.functional import dequantize
except (ImportError, OSError):  # OSError: TensorRT-LLM's libraries need the GPU driver

    class _Missing(type):
        def __getattr__(cls, name: str) -> Any:  # for class methods such as from_checkpoint
            raise AttributeError(name) if name.startswith("__") else UsageError(INSTALL_TENSORRT_LLM)

    class Module(metaclass=_Missing):  # type: ignore[no-redef]
        def __init__(self, *_: Any, **__: Any) -> None:
            raise UsageError(INSTALL_TENSORRT_LLM)

    ModuleList = PretrainedConfig = DecoderModelForCausalLM = Module
    MODEL_MAP = {}

ARCHITECTURE = "ParallelTrackForCausalLM"


class ParallelTrackConfig(PretrainedConfig):
    """The config.json of a checkpoint. Raises UsageError, naming the key, for a value that is not supported."""

    def __init__(
        self,
        *,
        parallel_track: dict[str, Any],
        rotary_base: float = 10000.0,
        rotary_scaling: dict[str, Any] | None = None,
        moe: dict[str, Any] | None = None,
        all_reduce_strategy: str = "NCCL",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.parallel_track = parallel_track
        self.rotary_base = rotary_base
        self.rotary_scaling = rotary_scaling
        if moe is not None:  # the C++ runtime reads the object if the key exists, and crashes on null
            self.moe = moe
        self.all_reduce_strategy = all_reduce_strategy
        for problem in _problems(self):
            raise UsageError(problem)

    @staticmethod
    def create_runtime_defaults(defaults: Any = None) -> Any:
        """Return the defaults unchanged.

        TensorRT-LLM would convert them to a compiled class, which can neither be copied with the config, as its builder
        does, nor be written to the engine's config.json.
        """
        return defaults

    @property
    def model(self) -> ModelConfig:
        """The model's config."""
        return ModelConfig.from_json(self.parallel_track["model"])

    @property
    def layout(self) -> RankLayout:
        """The part of the model on the rank of `mapping`."""
        return rank_layout(self.model, self.mapping.tp_size, self.mapping.tp_rank)


def _problems(config: ParallelTrackConfig) -> list[str]:
    mapping, quantization, found = config.mapping, config.quantization, []
    for name in ("pp_size", "cp_size"):
        if getattr(mapping, name) != 1:
            found.append(f"mapping.{name} ({getattr(mapping, name)}) must be 1: a rank holds whole tracks")
    if config.use_parallel_embedding:
        found.append("use_parallel_embedding (true) must be false: every rank looks tokens up in its own table")
    if quantization.quant_algo not in (None, *QUANT_ALGOS):
        found.append(f"quant_algo ({quantization.quant_algo}) must be null or one of {', '.join(QUANT_ALGOS)}")
    if quantization.kv_cache_quant_algo not in (None, "FP8"):
        found.append(f"kv_cache_quant_algo ({quantization.kv_cache_quant_algo}) must be null or FP8")
    if config.all_reduce_strategy not in AllReduceStrategy.__members__:
        names = ", ".join(AllReduceStrategy.__members__)
        found.append(f"all_reduce_strategy ({config.all_reduce_strategy!r}) must be one of {names}")
    return found


class ParallelTrackForCausalLM(DecoderModelForCausalLM):
    """The network of one rank of `config.mapping.tp_size`.

    Its output is the logits [requests, padded vocabulary], which are the same on all ranks.
    """

    config_class = ParallelTrackConfig

    def __init__(self, config: ParallelTrackConfig) -> None:
        self.quant_mode, self.mapping = config.quant_mode, config.mapping
        head = ColumnLinear(
            config.hidden_size,
            padded_vocab_size(config.model, config.mapping.tp_size),
            bias=False,
            dtype=config.dtype,
            tp_group=config.mapping.tp_group,
            tp_size=config.mapping.tp_size,
            gather_output=True,
        )
        super().__init__(config, Transformer(config), head)
        if config.rotary_scaling != config.model.rope_scaling:
            self.rotary_inv_freq.value, self.embed_positions_for_gpt_attention.value = rotary_tables(config.model)

    @classmethod
    def from_checkpoint(
        cls,
        ckpt_dir: str,
        rank: int | None = None,
        config: ParallelTrackConfig | None = None,
        *,
        preprocess_weights_hook: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> ParallelTrackForCausalLM:
        """Return the model with the weights of `rank`, by default of config.mapping.rank."""
        from trtllm_pt.backends.tensorrt_llm.weights import module_weights

        config = config or PretrainedConfig.from_checkpoint(ckpt_dir)

        def prepare(stored: dict[str, Any]) -> dict[str, Any]:
            weights = preprocess_weights_hook(stored) if preprocess_weights_hook else stored
            return module_weights(weights, config.model, len(config.layout.tracks), config.quantization.quant_algo)

        model: ParallelTrackForCausalLM = super().from_checkpoint(
            ckpt_dir, rank, config, preprocess_weights_hook=prepare
        )
        return model


MODEL_MAP[ARCHITECTURE] = ParallelTrackForCausalLM


class Transformer(Module):
    """The network without its output head."""

    def __init__(self, config: ParallelTrackConfig) -> None:
        super().__init__()
        self.config, self.model, self.layout = config, config.model, config.layout
        self.schedule = schedule_of(self.model)
        self.vocab_embedding = Embedding(self.model.vocab_size, self.model.hidden_size, dtype=config.dtype)
        self.layers = ModuleList([Layer(config, layer) for layer in range(self.model.num_layers)])
        self.ln_f = norm(1, self.model.hidden_size, config)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        attention_mask: Tensor | None = None,
        kv_cache_params: Any = None,
        attention_params: Any = None,
    ) -> Any:
        """Return the normalised stream [T, W] of input_ids [T], and with `use_cache` the caches of all layers."""
        arguments = {
            "use_cache": use_cache,
            "attention_mask": attention_mask,
            "kv_cache_params": kv_cache_params,
            "attention_params": attention_params,
        }
        if self.model.qk_norm_after_rope:
            arguments["rotary"] = rotary_rows(self.model, position_ids)
        ops = TrackOps(self, input_ids, arguments)
        x = self.vocab_embedding(input_ids)
        x = walk.walk(self.schedule, ops, x if ops.tracks == 1 else unsqueeze(x, 0))
        x = self.ln_f(x if ops.tracks == 1 else x.view([-1, self.model.hidden_size]))
        return (x, tuple(ops.caches)) if use_cache else x


class TrackOps(walk.TrackOps["Tensor"]):
    """The operations of the schedule walker as TensorRT layers.

    With one track every stream is [T, W]. With K > 1 tracks the shared stream is [1, T, W] and the tracks' own streams
    are [K, T, W].
    """

    def __init__(self, transformer: Transformer, input_ids: Tensor, attention_arguments: dict[str, Any]) -> None:
        super().__init__(transformer.model, transformer.layers)
        self.config, self.attention_arguments = transformer.config, attention_arguments
        self.input_ids = input_ids
        self.tracks = len(transformer.layout.tracks)
        self.unordered = unordered(transformer.schedule)
        self.reduced: list[Tensor] = []  # the results of the all-reduces so far
        self.caches: list[Any] = []  # in the order of the layers

    def sublayer(self, run: Run, x: Tensor) -> Tensor:
        layer = self.layers[run.layer]
        if run.place == "ffn":
            return layer.ffn_out(x)
        out, cache = layer.attention_out(x, self.attention_arguments)
        self.caches.append(cache)
        return out

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """Return the sum or mean over the tracks of all ranks. No other code of the network calls the plugin.

        The plugin only sums, so a mean divides before it. Multiplying by 1/n would be less exact.
        """
        if self.tracks > 1:
            x = reduce_sum(cast(x, "float32"), dim=0)  # [T, W]
        if op == "mean":
            x = self.scale_mean(x)
        x = cast(x, self.config.dtype)
        mapping = self.config.mapping
        if mapping.tp_size > 1:
            # Every call needs new parameters, because allreduce writes to them.
            strategy = AllReduceStrategy[self.config.all_reduce_strategy]
            x = allreduce(self.in_order(x), mapping.tp_group, all_reduce_params=AllReduceParams(strategy=strategy))
            self.reduced.append(x)
        return x if self.tracks == 1 else unsqueeze(x, 0)

    def in_order(self, x: Tensor) -> Tensor:
        """Return the input of the next all-reduce, x [T, W], unchanged but computed after the one before.

        TensorRT is free to change the order of layers without a data dependency, and builds each rank's engine on its
        own. Ranks that issue the all-reduces of one communicator in different orders would add up the wrong tensors. So
        x is selected from x and the previous result by a condition that is always true, which TensorRT cannot know.
        """
        if not self.unordered[len(self.reduced)]:
            return x
        return where(unsqueeze(gt(self.input_ids, -1), 1), x, self.reduced[-1])

    def scale_mean(self, x: Tensor) -> Tensor:
        return x / float(self.model.tracks)


class Layer(Module):
    """The two sub-layers of a layer with their norms, without the residual adds."""

    def __init__(self, config: ParallelTrackConfig, layer: int) -> None:
        super().__init__()
        model, layout = config.model, config.layout
        tracks, width = len(layout.tracks), model.hidden_size
        self.has_residual_norm = model.residual_norm
        if model.dispatch_norm and model.starts_block(layer):
            self.dispatch_layernorm = norm(tracks, width, config)
        self.input_layernorm = norm(tracks, width, config)
        self.attention = attention(config, layer)
        if model.has_shared_bias:
            self.attention_shared = Bias(width, config)
        self.post_layernorm = norm(tracks, width, config)
        self.mlp = experts(config) if model.is_moe(layer) else feed_forward(config)
        if model.residual_norm:
            self.attention_residual_layernorm = norm(tracks, width, config)
            self.mlp_residual_layernorm = norm(tracks, width, config)
        if model.combine_norm and model.ends_block(layer):
            self.combine_layernorm = norm(tracks, width, config)

    def attention_out(self, x: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output, to be added to x, and the layer's cache."""
        out, cache = self.attention(self.input_layernorm(x), **arguments), None
        if arguments["use_cache"]:
            out, cache = out
        return (self.attention_residual_layernorm(out) if self.has_residual_norm else out), cache

    def shared_bias(self) -> Tensor:
        return self.attention_shared.bias.value

    def ffn_out(self, x: Tensor) -> Tensor:
        out = self.mlp(self.post_layernorm(x))
        return self.mlp_residual_layernorm(out) if self.has_residual_norm else out


def attention(config: ParallelTrackConfig, layer: int) -> Module:
    """Return TensorRT-LLM's attention layer for one track, or ours for several tracks.

    Ours is also used where the stock layer computes something else: with QK norms and one KV head per head it expects
    q, k and v interleaved by head, and it cannot apply QK norms after the RoPE of its plugin.
    """
    model, layout = config.model, config.layout
    interleaves = model.qk_norm and model.num_heads == model.num_kv_heads
    if len(layout.tracks) > 1 or interleaves or model.qk_norm_after_rope:
        return TrackAttention(config, layer)
    return Attention(
        local_layer_idx=layer,
        hidden_size=model.hidden_size,
        attention_head_size=model.head_size,
        num_attention_heads=len(layout.heads),
        num_kv_heads=len(layout.kv_heads),
        max_position_embeddings=model.max_position_embeddings,
        dtype=config.dtype,
        attention_mask_type=AttentionMaskType.causal,
        bias=model.qkv_bias,
        dense_bias=model.has_dense_bias,
        position_embedding_type=position_type(model, layer),
        rotary_embedding_base=model.rope_theta,
        rotary_embedding_scaling=config.rotary_scaling,
        q_scaling=q_scaling(model, layer),
        qk_layernorm=model.qk_norm,
        layernorm_type=LayerNormType.RmsNorm,
        eps=model.norm_eps,
        quant_mode=config.quant_mode,
    )


def position_type(model: ModelConfig, layer: int) -> PositionEmbeddingType:
    """Return the attention plugin's kind of positions: RoPE, or learned_absolute, which does nothing in the plugin."""
    rotates = model.has_rope(layer) and not model.qk_norm_after_rope
    return PositionEmbeddingType.rope_gpt_neox if rotates else PositionEmbeddingType.learned_absolute


def q_scaling(model: ModelConfig, layer: int) -> float:
    """Return the number by which the attention plugin divides the product of a query and a key, beside sqrt(D).

    RoPE's attention factor multiplies both the query and the key. The plugin's kernels for generated tokens read only
    frequencies, to which it cannot be applied, so it is applied here.
    """
    rotates = position_type(model, layer).is_rope()
    return attention_factor(model.rope_scaling) ** -2 if rotates else 1.0


def rotary_tables(model: ModelConfig) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the plugin's tables, float32: the frequencies [D/2], and cos and sin of each angle [1, positions * D]."""
    from trtllm_pt.network.rope import inverse_frequencies

    frequencies = inverse_frequencies(model).numpy()
    angles = np.arange(model.max_position_embeddings, dtype=np.float32)[:, None] * frequencies
    return frequencies, np.stack((np.cos(angles), np.sin(angles)), -1).reshape(1, -1)


class TrackAttention(Module):
    """Attention with one plugin call over the heads of all tracks on the rank, in the order all q, all k, all v."""

    def __init__(self, config: ParallelTrackConfig, layer: int) -> None:
        super().__init__()
        model, layout = config.model, config.layout
        self.config, self.model, self.local_layer_idx = config, model, layer
        self.tracks, self.heads, self.kv_heads = len(layout.tracks), len(layout.heads), len(layout.kv_heads)
        self.rotates = model.has_rope(layer)
        rows = (self.heads + 2 * self.kv_heads) * model.head_size
        self.qkv = linear(self.tracks, model.hidden_size, rows, config, model.qkv_bias)
        self.dense = linear(self.tracks, self.heads * model.head_size, model.hidden_size, config, model.has_dense_bias)
        if model.qk_norm:
            self.q_layernorm = TrackNorm(self.tracks, model.head_size, config)
            self.k_layernorm = TrackNorm(self.tracks, model.head_size, config)
        if config.quant_mode.has_kv_cache_quant():
            self.kv_cache_scaling_factor = Parameter(shape=(1,), dtype="float32")
            self.kv_cache_rcp_scaling_factor = Parameter(shape=(1,), dtype="float32")

    def forward(
        self,
        x: Tensor,
        use_cache: bool,
        attention_mask: Tensor | None,
        kv_cache_params: Any,
        attention_params: Any,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Return a tensor of the shape of x, [T, W] or [K, T, W], and with `use_cache` the layer's cache."""
        packed = self.packed_qkv(self.qkv(x), rotary)
        fp8_scale = self.fp8_output_scale()
        context, cache = self.plugin(packed, fp8_scale, use_cache, attention_mask, kv_cache_params, attention_params)
        if fp8_scale is not None:  # the dense layer of each track quantises its own input
            scale = cast(constant(1.0 / fp8_scale), self.config.dtype)
            context = dequantize(context, scale, output_type=self.config.dtype)
        if self.tracks > 1:
            context = context.view([-1, self.tracks, self.heads * self.model.head_size]).permute([1, 0, 2])
        out = self.dense(context)
        return (out, cache) if use_cache else out

    def packed_qkv(self, qkv: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return [T, K * (H + 2 G) * D] from [T, (H + 2 G) * D] or [K, T, (H + 2 G) * D].

        QK norms are applied, and RoPE if the plugin does not apply it.
        """
        size, heads = self.model.head_size, (self.heads, self.kv_heads, self.kv_heads)
        parts = split(qkv.view([self.tracks, -1, sum(heads) * size]), [count * size for count in heads], dim=2)
        q, k, v = (part.view([self.tracks, -1, count, size]) for part, count in zip(parts, heads, strict=True))
        q, k = self.rotated_and_normed(q, k, rotary)
        flat = [self.track_after_track(part, count) for part, count in zip((q, k, v), heads, strict=True)]
        return concat(flat, dim=1)

    def rotated_and_normed(self, q: Tensor, k: Tensor, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        if rotary is not None and self.rotates:
            q, k = (cast(rotate(cast(part, "float32"), *rotary), self.config.dtype) for part in (q, k))
        return (self.q_layernorm(q), self.k_layernorm(k)) if self.model.qk_norm else (q, k)

    def track_after_track(self, part: Tensor, heads: int) -> Tensor:
        """Reorder [K, T, heads, D] to [T, K * heads * D]."""
        return part.permute([1, 0, 2, 3]).view([-1, self.tracks * heads * self.model.head_size])

    def fp8_output_scale(self) -> np.ndarray[Any, Any] | None:
        """Return the factor for the output of FP8 context attention, float32 [1], or None if it is not used.

        It is the inverse of the largest input scale of the tracks' dense layers. TensorRT-LLM's builder turns FP8
        context attention on by itself, for FP8 weights with an FP8 cache.
        """
        if not default_net().plugin_config.use_fp8_context_fmha:
            return None
        dense = [self.dense] if self.tracks == 1 else [self.dense[track] for track in range(self.tracks)]
        widest: np.ndarray[Any, Any] = np.max([module.activation_scaling_factor.raw_value for module in dense], axis=0)
        return (1.0 / widest).astype(np.float32)

    def plugin(
        self,
        qkv: Tensor,
        fp8_scale: np.ndarray[Any, Any] | None,
        use_cache: bool,
        attention_mask: Tensor | None,
        kv_cache_params: Any,
        attention_params: Any,
    ) -> Any:
        """Return the context [T, K * H * D] of qkv [T, K * (H + 2 G) * D], and the cache."""
        model, kind = self.model, position_type(self.model, self.local_layer_idx)
        rotates, scaling = kind.is_rope(), self.config.rotary_scaling
        quantises = self.config.quant_mode.has_kv_cache_quant()
        return gpt_attention(
            qkv=qkv,
            past_key_value=kv_cache_params.get_first_past_key_value(),
            attention_mask=attention_mask,
            sequence_length=attention_params.sequence_length,
            host_past_key_value_lengths=kv_cache_params.host_past_key_value_lengths,
            host_max_attention_window_sizes=kv_cache_params.host_max_attention_window_sizes,
            host_sink_token_length=kv_cache_params.host_sink_token_length,
            context_lengths=attention_params.context_lengths,
            cache_indirection=kv_cache_params.cache_indirection,
            host_request_types=attention_params.host_request_types,
            layer_idx=self.local_layer_idx,
            num_heads=self.tracks * self.heads,
            num_kv_heads=self.tracks * self.kv_heads,
            num_kv_heads_origin=self.tracks * self.kv_heads,
            hidden_size_per_head=model.head_size,
            q_scaling=q_scaling(model, self.local_layer_idx),
            rotary_embedding_dim=model.head_size if rotates else 0,
            rotary_embedding_base=model.rope_theta,
            rotary_embedding_scale_type=RotaryScalingType.from_string(scaling["rope_type"])
            if scaling
            else RotaryScalingType.none,
            rotary_embedding_scale=scaling["factor"] if scaling else 1.0,
            rotary_embedding_max_positions=model.max_position_embeddings,
            position_embedding_type=kind,
            rotary_inv_freq=attention_params.rotary_inv_freq if rotates else None,
            rotary_cos_sin=attention_params.embed_positions_for_gpt_attention if rotates else None,
            kv_orig_quant_scale=self.kv_cache_rcp_scaling_factor.value if quantises else None,
            kv_quant_orig_scale=self.kv_cache_scaling_factor.value if quantises else None,
            attention_output_orig_quant_scale=None if fp8_scale is None else constant(fp8_scale),
            kv_cache_quant_mode=self.config.quant_mode,
            max_context_length=attention_params.max_context_length,
            mask_type=AttentionMaskType.causal,
            kv_cache_block_offsets=kv_cache_params.kv_cache_block_offsets,
            host_kv_cache_block_offsets=kv_cache_params.host_kv_cache_block_offsets,
            host_kv_cache_pool_pointers=kv_cache_params.host_kv_cache_pool_pointers,
            host_kv_cache_pool_mapping=kv_cache_params.host_kv_cache_pool_mapping,
            host_context_lengths=attention_params.host_context_lengths,
            use_cache=use_cache,
            host_runtime_perf_knobs=attention_params.host_runtime_perf_knobs,
            host_context_progress=attention_params.host_context_progress,
        )


def rotary_rows(model: ModelConfig, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of RoPE's angles for the tokens' positions, float32 [1, T, 1, D/2] each."""
    import torch

    from trtllm_pt.network.rope import rotary

    tables = rotary(model, torch.arange(model.max_position_embeddings), torch.float32)
    rows = (index_select(constant(table.numpy()), 0, position_ids) for table in tables)
    cos, sin = (row.view([1, -1, 1, model.head_size // 2]) for row in rows)
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [K, T, heads, D], which pairs element i with element i + D/2 (GPT-NeoX order)."""
    a, b = split(x, x.size(3) // 2, dim=3)
    return concat([a * cos - b * sin, b * cos + a * sin], dim=3)


def feed_forward(config: ParallelTrackConfig) -> Module:
    """Return TensorRT-LLM's gated FFN for one track, or ours for several tracks."""
    model, layout = config.model, config.layout
    tracks, width, rows = len(layout.tracks), model.hidden_size, len(layout.ffn)
    if tracks > 1:
        return TrackMLP(tracks, width, rows, config)
    return GatedMLP(width, rows, "silu", bias=False, dtype=config.dtype, quant_mode=config.quant_mode)


class TrackMLP(Module):
    """SwiGLU for several tracks: down(silu(gate(x)) * up(x)). Attributes have the names in files (model/tensors.py)."""

    def __init__(self, tracks: int, width: int, rows: int, config: ParallelTrackConfig) -> None:
        super().__init__()
        self.fc = linear(tracks, width, rows, config)
        self.gate = linear(tracks, width, rows, config)
        self.proj = linear(tracks, rows, width, config)

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = self.fc, self.gate, self.proj
        return down(silu(gate(x)) * up(x))


def experts(config: ParallelTrackConfig) -> Module:
    """Return TensorRT-LLM's mixture of experts for each track. The experts are not divided over the ranks."""
    model, layout = config.model, config.layout
    layer = MOE if model.router_logits_cap is None else capped_moe(model.router_logits_cap)
    each = [
        layer(
            MoeConfig(num_experts=model.num_experts, top_k=model.experts_per_token),
            model.hidden_size,
            len(layout.experts_ffn),
            "swiglu",
            mapping=Mapping(),  # the model's mapping would divide experts over ranks, which hold whole tracks
            bias=False,
            dtype=config.dtype,
            quant_mode=config.quant_mode,
        )
        for _ in range(len(layout.tracks))
    ]
    return each[0] if len(each) == 1 else TrackAfterTrack(each)


def capped_moe(cap: float) -> type:
    """Return a subclass of MOE whose router logits are capped to cap * tanh(logits / cap).

    It is a class because quantising constructs the MOE again.
    """

    class CappedMOE(MOE):
        def renormalize(self, logits: Tensor) -> Any:
            return super().renormalize(tanh(logits / cap) * cap)

    return CappedMOE


def linear(tracks: int, columns: int, rows: int, config: ParallelTrackConfig, bias: bool = False) -> Module:
    """Return a layer from [T, I] to [T, O] for one track, or from [K, T, I] to [K, T, O] for several.

    Quantised layers consist of one module per track, because their kernels are not batched.
    """
    if tracks > 1 and config.quantization.quant_algo is None:
        return TrackLinear(tracks, columns, rows, config.dtype, bias)
    each = [ColumnLinear(columns, rows, bias=bias, dtype=config.dtype) for _ in range(tracks)]
    return each[0] if tracks == 1 else TrackAfterTrack(each)


class TrackLinear(Module):
    """The product of x [K, T, I] with a weight per track, as one batched product."""

    def __init__(self, tracks: int, columns: int, rows: int, dtype: str, bias: bool) -> None:
        super().__init__()
        self.shape = [tracks, 1, rows]
        self.weight = Parameter(shape=(tracks, rows, columns), dtype=dtype)
        self.bias = Parameter(shape=(tracks, rows), dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = matmul(x, self.weight.value, transb=True)
        return y if self.bias is None else y + self.bias.value.view(self.shape)


class Bias(Module):
    """A module that holds one parameter, `bias`, which is the same for all tracks."""

    def __init__(self, features: int, config: ParallelTrackConfig) -> None:
        super().__init__()
        self.bias = Parameter(shape=(features,), dtype=config.dtype)


class TrackAfterTrack(ModuleList):
    """Applies one module per track: x [K, T, I] -> [K, T, O]."""

    def forward(self, x: Tensor) -> Tensor:
        return stack([self[track](select(x, 0, track)) for track in range(len(self))])


def norm(tracks: int, features: int, config: ParallelTrackConfig) -> Module:
    """Return TensorRT-LLM's RMSNorm for one track, or ours for several tracks."""
    if tracks > 1:
        return TrackNorm(tracks, features, config)
    return RmsNorm(features, eps=config.norm_epsilon, dtype=config.dtype)


class TrackNorm(Module):
    """RMSNorm with a weight per track. x is [K, T, …, features], or [1, T, …, features], which is the same for all."""

    def __init__(self, tracks: int, features: int, config: ParallelTrackConfig) -> None:
        super().__init__()
        self.tracks, self.features, self.eps = tracks, features, config.norm_epsilon
        self.weight = Parameter(shape=(tracks, features) if tracks > 1 else (features,), dtype=config.dtype)

    def forward(self, x: Tensor) -> Tensor:
        shape = [self.tracks, *[1] * (x.ndim() - 2), self.features]
        return rms_norm(x, self.features, eps=self.eps) * self.weight.value.view(shape)
