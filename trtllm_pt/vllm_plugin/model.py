"""The network of one rank in vLLM, run by the schedule walker.

Shapes: T tokens of the step, K tracks on this rank, W hidden_size, H heads and G KV heads per track on this rank,
D head_size, E experts, I inputs and O outputs of a matrix. The shared stream is [1, T, W], the tracks' own streams are
[K, T, W].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, rank_layout
from trtllm_pt.model.schedule import ReduceOp, Run, schedule_of
from trtllm_pt.network import walk
from trtllm_pt.network.module import Module
from trtllm_pt.network.rope import rotary
from trtllm_pt.vllm_plugin.layers import Attention, Bias, Experts, GatedMLP, Norm
from trtllm_pt.vllm_plugin.weights import load

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class ParallelTrackForCausalLM(Module):
    """The model class that vLLM's registry names."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config: ModelConfig = vllm_config.model_config.hf_config.model
        self.is_stored_quantized = hasattr(vllm_config.model_config.hf_config, "quantization_config")
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        self.layout = rank_layout(self.config, ranks, rank)
        self.transformer = Transformer(vllm_config=vllm_config, layout=self.layout)
        self.lm_head = ParallelLMHead(self.config.vocab_size, self.config.hidden_size, prefix="lm_head")
        self.logits_processor = LogitsProcessor(self.config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.transformer.vocab_embedding(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return the normalised stream [T, W]."""
        return self.transformer(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits [T, V], by one gather over the ranks; None on a rank that gets none."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return load(self, weights)


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "inputs_embeds": 0})
class Transformer(Module):
    """The network without its output head."""

    layers: Sequence[Layer]
    cos: Tensor  # [positions, D/2]
    sin: Tensor

    def __init__(self, *, vllm_config: VllmConfig, layout: RankLayout, prefix: str = "") -> None:
        super().__init__()
        self.config: ModelConfig = vllm_config.model_config.hf_config.model
        self.tracks = len(layout.tracks)
        self.schedule = schedule_of(self.config)
        self.vocab_embedding = nn.Embedding(self.config.vocab_size, self.config.hidden_size)
        layers = (Layer(self.config, layout, layer, vllm_config) for layer in range(self.config.num_layers))
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]  # nn.ModuleList has no element type
        self.ln_f = Norm(1, self.config.hidden_size, self.config)
        positions = torch.arange(self.config.max_position_embeddings)
        for name, table in zip(("cos", "sin"), rotary(self.config, positions, torch.float32), strict=True):
            self.register_buffer(name, table, persistent=False)

    def forward(self, input_ids: Tensor | None, positions: Tensor, inputs_embeds: Tensor | None) -> Tensor:
        x = self.vocab_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        ops = TrackOps(self, (self.cos[positions], self.sin[positions]))
        return self.ln_f(walk.walk(self.schedule, ops, x[None]))[0]


class TrackOps(walk.TrackOps[Tensor]):
    """The operations of the schedule walker.

    Without a dispatch norm, the first add broadcasts the shared stream to the tracks.
    """

    def __init__(self, transformer: Transformer, rotary: tuple[Tensor, Tensor]) -> None:
        super().__init__(transformer.config, transformer.layers)
        self.rotary = rotary

    def sublayer(self, run: Run, x: Tensor) -> Tensor:
        layer: Layer = self.layers[run.layer]
        return layer.attention_out(x, self.rotary) if run.place == "attention" else layer.ffn_out(x)

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """Return the sum or mean over all tracks of all ranks, [1, T, W]. No other code of the network communicates.

        On processors the ranks exchange float32: gloo rounds a sum of bfloat16 at every step of its ring, which gives
        equal elements different results.
        """
        total = x.sum(0, dtype=torch.float32)
        if op == "mean":
            total = total / self.model.tracks
        if not current_platform.is_cpu():
            total = total.to(x.dtype)
        reduced: Tensor = tensor_model_parallel_all_reduce(total)
        return reduced.to(x.dtype)[None]

    def scale_mean(self, x: Tensor) -> Tensor:
        return x / self.model.tracks


class Layer(Module):
    """The two sub-layers of a layer with their norms, without the residual adds."""

    def __init__(self, config: ModelConfig, layout: RankLayout, layer: int, vllm_config: VllmConfig) -> None:
        super().__init__()
        width, tracks, prefix = config.hidden_size, len(layout.tracks), f"transformer.layers.{layer}"
        self.config = config
        if config.dispatch_norm and config.starts_block(layer):
            self.dispatch_layernorm = Norm(tracks, width, config)
        self.input_layernorm = Norm(tracks, width, config)
        self.attention = Attention(config, layout, layer, vllm_config, f"{prefix}.attention")
        if config.has_shared_bias:
            self.attention_shared = Bias(width)
        self.post_layernorm = Norm(tracks, width, config)
        ffn = Experts if config.is_moe(layer) else GatedMLP
        self.mlp: Module = ffn(config, layout, vllm_config.quant_config, f"{prefix}.mlp")
        if config.residual_norm:
            self.attention_residual_layernorm = Norm(tracks, width, config)
            self.mlp_residual_layernorm = Norm(tracks, width, config)
        if config.combine_norm and config.ends_block(layer):
            self.combine_layernorm = Norm(tracks, width, config)

    def attention_out(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Return the attention's output [K, T, W] for x [K, T, W], or [1, T, W] for the same x on all tracks."""
        out = self.attention(self.input_layernorm(x), rotary)
        return self.attention_residual_layernorm(out) if self.config.residual_norm else out

    def shared_bias(self) -> Tensor:
        bias: Tensor = self.attention_shared.bias
        return bias

    def ffn_out(self, x: Tensor) -> Tensor:
        """Return the FFN's output [K, T, W] for x [K, T, W], or [1, T, W] for the same x on all tracks."""
        out = self.mlp(self.post_layernorm(x))
        return self.mlp_residual_layernorm(out) if self.config.residual_norm else out
