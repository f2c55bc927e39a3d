"""Count a model's parameters, bytes, FLOPs and collectives from its config, schedule and layout."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import padded_vocab_size, rank_layout
from trtllm_pt.model.quantization import NOT_QUANTIZED, Quantization, kv_scales, stored
from trtllm_pt.model.schedule import Start, schedule_of
from trtllm_pt.model.tensors import TensorSpec, rank_tensors, tensors

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}


# Size of the message that announces one decode step to the other ranks in the embedded engine: 11 numbers of 8 bytes
# (backends/embedded/step_plan.py).
STEP_PLAN_BYTES = 112


@dataclass(frozen=True, slots=True)
class Collective:
    """One message between ranks in a forward pass, which is a row of `inspect --json`."""

    kind: Literal["all_reduce", "gather", "broadcast"]
    layer: int | None  # the layer after which the message is sent
    place: str  # the sub-layer after which the message is sent, or what it carries
    group: tuple[int, ...]  # the ranks that take part
    op: str | None  # "sum" or "mean" for an all-reduce
    dtype: str
    bytes_per_token: int  # payload of one rank

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "group": list(self.group)}


def parameters(config: ModelConfig) -> int:
    """Return the number of weights over all tracks. A tied output head is not counted apart from the embedding."""
    return sum(math.prod(spec.global_shape(config)) for spec in tensors(config))


def active_parameters(config: ModelConfig) -> int:
    """Return the number of weights that one token uses: of the experts, only those that its router chooses."""
    idle = 0
    for spec in tensors(config):
        if is_expert(spec):
            idle += (
                math.prod(spec.global_shape(config))
                * (config.num_experts - config.experts_per_token)
                // config.num_experts
            )
    return parameters(config) - idle


def is_expert(spec: TensorSpec) -> bool:
    """Return whether the weight has an expert axis."""
    return len(spec.shape) == 3


def bytes_per_rank(
    config: ModelConfig,
    ranks: int,
    dtype: str,
    quantization: Quantization = NOT_QUANTIZED,
    own_head: bool = False,
) -> int:
    """Return the bytes of weights and quantisation scales on rank 0. Routers count as float32.

    own_head: count a tied output head's slice of the vocabulary in addition to the embedding.
    """
    layout = rank_layout(config, ranks)
    weights = rank_tensors(config) if own_head else tensors(config)
    held = [tensor for spec in weights for tensor in stored(spec, dtype, quantization)]
    held += kv_scales(config, quantization.kv_cache)
    return sum(math.prod(tensor.rank_shape(config, layout)) * DTYPE_BYTES[tensor.dtype] for tensor in held)


def kv_bytes_per_token(config: ModelConfig, ranks: int, dtype: str, kv_cache_quant_algo: str | None = None) -> int:
    """Return the bytes of KV cache that one token takes on one rank, over all layers."""
    layout = rank_layout(config, ranks)
    heads = len(layout.tracks) * len(layout.kv_heads)
    sizes = {"FP8": config.head_size, "INT8": config.head_size + DTYPE_BYTES["float32"]}  # with a scale
    size = sizes.get(kv_cache_quant_algo or "", config.head_size * DTYPE_BYTES[dtype])
    return 2 * config.num_layers * heads * size


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Return the FLOPs over all tracks for one token that attends to `context` keys. A multiply-add counts as two."""
    matmul = 2 * (active_parameters(config) - _vector_parameters(config))
    if not config.tie_embeddings:
        matmul -= 2 * config.vocab_size * config.hidden_size  # the embedding is a look-up, not a product
    inner = config.tracks * config.num_heads * config.head_size
    keys = sum(min(context, config.layer_window(layer) or context) for layer in range(config.num_layers))
    return matmul + 4 * inner * keys


def _vector_parameters(config: ModelConfig) -> int:
    return sum(math.prod(spec.global_shape(config)) for spec in tensors(config) if spec.kind in ("norm", "bias"))


def collectives(
    config: ModelConfig, ranks: int, wire_dtype: str, logits_dtype: str = "float32", step_bytes: int = 0
) -> list[Collective]:
    """Return every message between ranks in one forward pass, in order. With one rank there are none.

    wire_dtype: of the all-reduces. logits_dtype: of the gathered logits. step_bytes: size of the broadcast that
    announces a step of one token (the embedded engine's step plan); 0 if the engine's runtime announces steps itself.
    """
    if ranks == 1:
        return []
    group = tuple(range(ranks))
    found = []
    if step_bytes:
        found.append(Collective("broadcast", None, "step plan", group, None, "int64", step_bytes))
    size = config.hidden_size * DTYPE_BYTES[wire_dtype]
    for step in schedule_of(config):
        if isinstance(step, Start):
            found.append(Collective("all_reduce", *step.key, group, step.op, wire_dtype, size))
    logits = padded_vocab_size(config, ranks) // ranks * DTYPE_BYTES[logits_dtype]
    found.append(Collective("gather", None, "logits", group, None, logits_dtype, logits))
    return found
