"""The layers of the network: all tracks of a rank side by side, on vLLM's attention, matrix products and experts.

Shapes as in model.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm._custom_ops import bmm_cpu
from vllm.model_executor.layers.attention import Attention as PagedAttention
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.platforms import current_platform

from trtllm_pt.model import tensors
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout
from trtllm_pt.network.module import Module
from trtllm_pt.network.rope import rotate

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.model_executor.layers.quantization import QuantizationConfig


class Attention(Module):
    """Attention with one call of vLLM's over the heads of all tracks, so that the KV cache has its usual geometry."""

    def __init__(
        self, config: ModelConfig, layout: RankLayout, layer: int, vllm_config: VllmConfig, prefix: str
    ) -> None:
        super().__init__()
        self.config, self.has_rope = config, config.has_rope(layer)
        self.tracks, self.heads, self.kv_heads = len(layout.tracks), len(layout.heads), len(layout.kv_heads)
        size, width, quant = config.head_size, config.hidden_size, vllm_config.quant_config
        rows = (self.heads + 2 * self.kv_heads) * size
        self.qkv = linear(self.tracks, width, [rows], quant, f"{prefix}.qkv", config.qkv_bias)
        self.dense = linear(self.tracks, self.heads * size, [width], quant, f"{prefix}.dense", config.has_dense_bias)
        if config.qk_norm:
            self.q_layernorm = Norm(self.tracks, size, config)
            self.k_layernorm = Norm(self.tracks, size, config)
        self.attend = PagedAttention(
            self.tracks * self.heads,
            size,
            size**-0.5,
            num_kv_heads=self.tracks * self.kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            per_layer_sliding_window=config.layer_window(layer),
            prefix=f"{prefix}.attend",
        )

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        c = self.config
        parts: Tensor = self.qkv(x)
        parts = parts.view(*parts.shape[:2], -1, c.head_size)  # [K, T, H + 2 G, D]
        q, k, v = torch.split(parts, [self.heads, self.kv_heads, self.kv_heads], 2)
        if c.qk_norm and not c.qk_norm_after_rope:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        if self.has_rope:
            cos, sin = (table[:, None] for table in rotary)
            q, k = (rotate(part.float(), cos, sin).to(part.dtype) for part in (q, k))
        if c.qk_norm_after_rope:
            q, k = self.q_layernorm(q), self.k_layernorm(k)
        q, k, v = (part.transpose(0, 1).flatten(1) for part in (q, k, v))  # [T, K * heads * D], track after track
        context = self.attend(q, k, v)
        return self.dense(context.view(len(context), self.tracks, -1).transpose(0, 1))


class GatedMLP(Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), with gate and up in one matrix product."""

    def __init__(self, config: ModelConfig, layout: RankLayout, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        tracks, width, rows = len(layout.tracks), config.hidden_size, len(layout.ffn)
        self.gate_up = linear(tracks, width, [rows, rows], quant, f"{prefix}.gate_up")
        self.proj = linear(tracks, rows, [width], quant, f"{prefix}.proj")

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.proj(F.silu(gate) * up)

    def place(self, name: str, track: int, part: Tensor) -> None:
        """Copy one track of the weight that a model's files call `name`."""
        leaf = name.rpartition(".")[2]
        match f"{name.removesuffix(leaf)}weight":
            case tensors.GATE:
                self.gate_up.place(leaf, track, part, 0)
            case tensors.UP:
                self.gate_up.place(leaf, track, part, 1)
            case tensors.DOWN:
                self.proj.place(leaf, track, part)


class Experts(Module):
    """The experts of all tracks as one mixture of experts of vLLM, whose rows are pairs of a track and a token.

    A row's logits for the experts of other tracks are -inf, so it chooses among its own track's.
    """

    def __init__(self, config: ModelConfig, layout: RankLayout, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.config, self.tracks = config, len(layout.tracks)
        # A rounded logit may choose another expert, so the router stays float32.
        shape = (self.tracks, config.num_experts, config.hidden_size)
        self.router = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)
        self.experts = FusedMoEFactory(
            num_experts=self.tracks * config.num_experts,
            top_k=config.experts_per_token,
            hidden_size=config.hidden_size,
            intermediate_size=len(layout.experts_ffn),
            renormalize=True,  # a softmax over the chosen logits
            quant_config=quant,
            tp_size=1,  # the layout has divided them
            reduce_results=False,
            router_logits_dtype=torch.float32,
            prefix=f"{prefix}.experts",
        )

    def forward(self, x: Tensor) -> Tensor:
        c, tokens = self.config, x.shape[1]
        rows = x.expand(self.tracks, -1, -1)
        logits = torch.bmm(rows.float(), self.router.mT)  # [K, T, E]
        if (cap := c.router_logits_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        if self.tracks > 1:
            own = torch.eye(self.tracks, dtype=torch.bool, device=x.device)[:, None, :, None]  # [K, 1, K, 1]
            logits = torch.where(own, logits[:, :, None], -torch.inf).flatten(2)
        out: Tensor = self.experts(rows.flatten(0, 1), logits.flatten(0, 1))
        return out.view(self.tracks, tokens, c.hidden_size)

    def place(self, name: str, track: int, part: Tensor) -> None:
        """Copy one track of the weight that a model's files call `name`."""
        routed, first = self.experts.routed_experts, track * self.config.num_experts
        match name:
            case tensors.UP_GATE:
                up, gate = part.chunk(2, 1)
                routed.w13_weight[first : first + len(part)].copy_(torch.cat((gate, up), 1))
            case tensors.DOWN:
                routed.w2_weight[first : first + len(part)].copy_(part)
            case _:
                self.router[track].copy_(part)


class Norm(Module):
    """RMSNorm of x [K, T, …, features] in float32, with a weight per track."""

    def __init__(self, tracks: int, features: int, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.empty(tracks, features), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(len(self.weight), *[1] * (x.dim() - 2), -1)
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * weight).to(x.dtype)

    def place(self, leaf: str, track: int, part: Tensor) -> None:
        self.weight[track].copy_(part)


class Bias(Module):
    """A module that holds one parameter, `bias`, which is the same for all tracks."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(features), requires_grad=False)


def linear(
    tracks: int, inputs: int, outputs: list[int], quant: QuantizationConfig | None, prefix: str, bias: bool = False
) -> BatchedLinear | TrackAfterTrack:
    """Return a layer from [K, T, I] or [1, T, I] to [K, T, O]. `outputs` are the rows of the matrices stacked in it."""
    if tracks > 1 and quant is None and not one_by_one():
        return BatchedLinear(tracks, inputs, outputs, bias)
    return TrackAfterTrack(tracks, inputs, outputs, quant, prefix, bias)


def one_by_one() -> bool:
    """Whether vLLM's own product for each track is faster than one product for all tracks.

    On a processor without AMX, vLLM packs the matrices of its own layers, but not those of a batched product.
    """
    packed = current_platform.is_cpu() and torch.get_default_dtype() == torch.bfloat16
    return packed and not torch.cpu._is_amx_tile_supported()


class BatchedLinear(Module):
    """The products of all tracks as one batched product."""

    def __init__(self, tracks: int, inputs: int, outputs: list[int], bias: bool) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.empty(tracks, sum(outputs), inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(tracks, sum(outputs)), requires_grad=False) if bias else None
        self.quant_method = BatchedProduct()  # by this name vLLM finds what to call when the weights are loaded

    def forward(self, x: Tensor) -> Tensor:
        out = self.quant_method.apply(self, x.expand(len(self.weight), -1, -1))
        return out if self.bias is None else out + self.bias[:, None]

    def place(self, leaf: str, track: int, part: Tensor, matrix: int = 0) -> None:
        start = sum(self.outputs[:matrix])
        self.get_parameter(leaf)[track, start : start + len(part)].copy_(part)


class BatchedProduct(QuantizeMethodBase):
    """torch's product, or vLLM's for processors with AMX, which takes half the time but wants packed weights."""

    packed = False

    def create_weights(self, layer: BatchedLinear, *args: object, **kwargs: object) -> None:
        """Do nothing: BatchedLinear has its weights from the start."""

    def process_weights_after_loading(self, layer: BatchedLinear) -> None:
        if packs(layer.weight):
            layer.weight.data = torch.ops._C.convert_weight_packed(layer.weight)
            self.packed = True

    def apply(self, layer: BatchedLinear, x: Tensor) -> Tensor:
        if not self.packed:
            return torch.bmm(x, layer.weight.mT)
        out = x.new_empty(*x.shape[:2], layer.weight.shape[1])
        bmm_cpu(out, x, layer.weight, True)
        return out


def packs(weight: Tensor) -> bool:
    """Whether vLLM's product for processors takes matrices [K, O, I] of this dtype and size on this machine."""
    _, outputs, inputs = weight.shape
    supported = weight.dtype == torch.bfloat16 and weight.is_cpu and torch.cpu._is_amx_tile_supported()
    return supported and inputs % 32 == 0 and outputs % 32 == 0


class TrackAfterTrack(Module):
    """A local linear layer of vLLM for each track, which vLLM quantises or packs as those of other models."""

    def __init__(
        self,
        tracks: int,
        inputs: int,
        outputs: list[int],
        quant: QuantizationConfig | None,
        prefix: str,
        bias: bool,
    ) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            _local_linear(inputs, outputs, quant, f"{prefix}.each.{track}", bias) for track in range(tracks)
        )

    def forward(self, x: Tensor) -> Tensor:
        shared = len(x) < len(self.each)
        return torch.stack([layer(x[0 if shared else track]) for track, layer in enumerate(self.each)])

    def place(self, leaf: str, track: int, part: Tensor, matrix: int | None = None) -> None:
        parameter = getattr(self.each[track], leaf)
        parameter.weight_loader(parameter, part, *([] if matrix is None else [matrix]))


def _local_linear(
    inputs: int, outputs: list[int], quant: QuantizationConfig | None, prefix: str, bias: bool
) -> nn.Module:
    options = {"bias": bias, "quant_config": quant, "prefix": prefix, "return_bias": False}
    layer: nn.Module = (
        ReplicatedLinear(inputs, outputs[0], **options)
        if len(outputs) == 1
        else MergedColumnParallelLinear(inputs, outputs, disable_tp=True, **options)
    )
    return layer
