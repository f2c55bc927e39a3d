"""Which tensors store a weight: one, or if it is quantised several, under the names of TensorRT-LLM's layers.

W8A16         X.weight int8; X.per_channel_scale, one per output. Activations are not quantised.
W4A16         As W8A16, with two 4-bit inputs per byte; the even input is in the low half.
W4A16-G128    As W4A16, with a scale for each group of 128 consecutive inputs of an output: X.weights_scaling_factor
              [O, I / 128]. Also W8A16-G128, and groups of 64 and 32. With -ZP behind it, groups also have zero points:
              X.zero [O, I / 128], integers of as many bits, and a weight is scale * (integer - zero).
W8A16 of the embedding and the output head    As that of a matrix, with a scale per token of the vocabulary.
FP8           X.weight float8_e4m3fn; X.weights_scaling_factor and X.activation_scaling_factor, float32, one each per
              matrix.
FP8 KV cache  attention.kv_cache_scaling_factor, float32, one per layer for all tracks.
INT8 KV cache Nothing: a scale per token and KV head is computed when the token is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, rank_layout
from trtllm_pt.model.tensors import TensorSpec, tensors


@dataclass(frozen=True, slots=True)
class WeightOnly:
    """A quantisation of weights to integers. Activations are not quantised."""

    bits: int
    group: int | None = None  # inputs of an output that share a scale; None: all
    zeros: bool = False  # whether groups have zero points


GROUPS = (128, 64, 32)
PER_CHANNEL = {"W8A16": WeightOnly(8), "W4A16": WeightOnly(4)}
WEIGHT_ONLY = {
    **PER_CHANNEL,
    **{f"W{bits}A16-G{group}": WeightOnly(bits, group) for bits in (8, 4) for group in GROUPS},
    **{f"W{bits}A16-G{group}-ZP": WeightOnly(bits, group, zeros=True) for bits in (8, 4) for group in GROUPS},
}
QUANT_ALGOS = (*WEIGHT_ONLY, "FP8")
KV_CACHE_QUANT_ALGOS = ("FP8", "INT8")
EMBEDDING_QUANT_ALGOS = ("W8A16",)
_MULTIPLE = 64  # TensorRT-LLM's weight-only layers pad other sizes


@dataclass(frozen=True, slots=True)
class Quantization:
    """What of a model is quantised, and how; None stands for not at all."""

    matrices: str | None = None  # of the layers: one of QUANT_ALGOS
    embedding: str | None = None  # and the output head: one of EMBEDDING_QUANT_ALGOS
    kv_cache: str | None = None  # one of KV_CACHE_QUANT_ALGOS

    def of(self, spec: TensorSpec) -> str | None:
        """Return the quantisation of a weight."""
        return self.embedding if is_embedding(spec) else self.matrices if is_quantized(spec) else None

    def __str__(self) -> str:
        """Return the form of messages, such as `W8A16` or `FP8 + FP8 KV cache`, or "" for no quantisation."""
        parts = ((self.matrices, ""), (self.embedding, " embedding"), (self.kv_cache, " KV cache"))
        return " + ".join(f"{algo}{what}" for algo, what in parts if algo)


NOT_QUANTIZED = Quantization()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that stores a weight or a scale, before it is divided over tracks and ranks."""

    spec: TensorSpec  # the name, shape and division of this tensor, which for a scale are not those of its weight
    dtype: str
    per_byte: int = 1  # values per stored element along the last axis

    def rank_shape(self, config: ModelConfig, layout: RankLayout) -> tuple[int, ...]:
        """Return the tensor's shape in a rank's checkpoint file."""
        *rows, columns = self.spec.rank_shape(config, layout)
        return (*rows, columns // self.per_byte)


def is_quantized(spec: TensorSpec) -> bool:
    """Return whether `quant_algo` applies to a weight. It applies to the layers' matrices and not to the embedding, the
    output head, routers, norms and biases."""
    return spec.per_track and spec.kind in ("matrix", "output")


def is_embedding(spec: TensorSpec) -> bool:
    """Return whether `embedding_quant_algo` applies to a weight: to the embedding and the output head."""
    return spec.kind == "embedding" or spec.split == "vocab"


def stored(spec: TensorSpec, dtype: str, quantization: Quantization = NOT_QUANTIZED) -> tuple[StoredTensor, ...]:
    """Return the tensors that store a weight in a checkpoint of `dtype`: the weight first, then its scales.

    Routers stay float32, because a rounded logit may choose another expert.
    """
    algo = quantization.of(spec)
    if algo is None:
        return (StoredTensor(spec, "float32" if spec.kind == "router" else dtype),)
    stem = spec.name.removesuffix("weight")
    if algo == "FP8":
        scale = TensorSpec(f"{stem}weights_scaling_factor", (*spec.shape[:-2], 1), spec.per_track, kind="scale")
        activation = replace(scale, name=f"{stem}activation_scaling_factor", shape=(1,))
        weight = StoredTensor(spec, "float8_e4m3fn")
        return (weight, StoredTensor(scale, "float32"), StoredTensor(activation, "float32"))
    chosen = WEIGHT_ONLY[algo]
    weight = StoredTensor(spec, "int8", per_byte=8 // chosen.bits)
    if chosen.group is not None:
        shape = (*spec.shape[:-1], spec.shape[-1] // chosen.group)
        scale = replace(spec, name=f"{stem}weights_scaling_factor", shape=shape, kind="scale", group=chosen.group)
        zero = StoredTensor(replace(scale, name=f"{stem}zero"), "int8")
        return (weight, StoredTensor(scale, dtype), *([zero] if chosen.zeros else []))
    divided_by_outputs = spec.split not in ("heads_in", "ffn_in")
    scale = TensorSpec(
        f"{stem}per_channel_scale",
        spec.shape[:-1],
        spec.per_track,
        spec.split if divided_by_outputs else "none",
        kind="scale",
    )
    return (weight, StoredTensor(scale, dtype))


def kv_scales(config: ModelConfig, kv_cache_quant_algo: str | None) -> Iterator[StoredTensor]:
    """Yield the FP8 KV cache's scale of every layer, which is the same in every rank's file."""
    for layer in range(config.num_layers if kv_cache_quant_algo == "FP8" else 0):
        name = f"transformer.layers.{layer}.attention.kv_cache_scaling_factor"
        yield StoredTensor(TensorSpec(name, (1,), per_track=False, kind="scale"), "float32")


def check(config: ModelConfig, ranks: int, quantization: Quantization) -> None:
    """Raise UsageError for an unknown algorithm, or for matrices of sizes that it does not support."""
    quant_algo, embedding, kv_cache = quantization.matrices, quantization.embedding, quantization.kv_cache
    if quant_algo not in (None, *QUANT_ALGOS):
        raise UsageError(f"quant_algo ({quant_algo!r}) must be one of {', '.join(QUANT_ALGOS)}")
    if kv_cache not in (None, *KV_CACHE_QUANT_ALGOS):
        raise UsageError(f"kv_cache_quant_algo ({kv_cache!r}) must be {' or '.join(KV_CACHE_QUANT_ALGOS)}")
    if embedding not in (None, *EMBEDDING_QUANT_ALGOS):
        raise UsageError(f"embedding_quant_algo ({embedding!r}) must be {' or '.join(EMBEDDING_QUANT_ALGOS)}")
    if embedding and config.hidden_size % _MULTIPLE:
        raise UsageError(
            f"embedding_quant_algo ({embedding!r}): hidden_size ({config.hidden_size}) must be a multiple of "
            f"{_MULTIPLE}"
        )
    if quant_algo in WEIGHT_ONLY:
        _check_matrices(config, ranks, quant_algo)


def _check_matrices(config: ModelConfig, ranks: int, quant_algo: str) -> None:
    """Raise UsageError for a matrix whose part on a rank cannot have a weight-only quantisation."""
    layout, group = rank_layout(config, ranks), WEIGHT_ONLY[quant_algo].group
    for spec in filter(is_quantized, tensors(config)):
        out, columns = spec.rank_shape(config, layout)[-2:]
        if out % _MULTIPLE or columns % _MULTIPLE:
            raise UsageError(
                f"quant_algo ({quant_algo!r}): {spec.name} has {out} outputs and {columns} inputs on each of {ranks} "
                f"rank{'s' if ranks > 1 else ''}; both must be multiples of {_MULTIPLE}"
            )
        if group is not None and columns % group:
            kind = WEIGHT_ONLY[quant_algo]
            fitting = [name for name, other in WEIGHT_ONLY.items() if _has_groups_for(columns, kind, other)]
            raise UsageError(
                f"quant_algo ({quant_algo!r}): groups of {group} do not divide the {columns} inputs of {spec.name} on "
                f"each of {ranks} rank{'s' if ranks > 1 else ''}; {fitting[0]} has groups that do"
            )


def _has_groups_for(columns: int, kind: WeightOnly, other: WeightOnly) -> bool:
    """Return whether `other` is `kind` with groups that divide a number of inputs."""
    return other.group is not None and columns % other.group == 0 and other == replace(kind, group=other.group)
