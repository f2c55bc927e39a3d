"""The network of one rank on TensorRT's own layers, run by the schedule walker.

The KV cache consists of slots: each sequence has one, with room for M positions. A step is a chunk of one
sequence's prompt, or one token of each of the first B slots; the optimization profiles in `profiles.py` say so.

Shapes: B slots in the step, S tokens of each, T = B * S, R rows of logits, M positions of a slot, V padded vocabulary,
K tracks on this rank, W hidden_size, H heads and G KV heads per track on this rank, D head_size, I inputs and O outputs
of a matrix, E experts, F rows of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from trtllm_pt.backends.tensorrt.collectives import GATHER, all_reduce_name
from trtllm_pt.backends.tensorrt.graph import Graph, Tensor
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import RankLayout, rank_layout
from trtllm_pt.model.schedule import ReduceOp, Run, Start, schedule_of, unordered
from trtllm_pt.model.tensors import DOWN, GATE, SHARED_BIAS, UP, UP_GATE
from trtllm_pt.network import walk
from trtllm_pt.network.rope import rotary


class Weights(Protocol):
    """A rank's weights by the names of model/tensors.py. Those of the layers have a leading axis of tracks."""

    def __getitem__(self, name: str) -> torch.Tensor: ...

    def __contains__(self, name: str) -> bool: ...


def cache_names(layer: int) -> tuple[str, str]:
    """Return the names of the inputs with a layer's keys and values. Those of the outputs begin with `new_`."""
    return f"keys_{layer}", f"values_{layer}"


def define(graph: Graph, manifest: CheckpointManifest, rank: int, weights: Weights, slot_size: int) -> None:
    """Add the layers of a rank to an empty network. Its output is float32 logits [R, V], the same on all ranks."""
    layout = rank_layout(manifest.model, manifest.ranks, rank)
    part = Part(graph, manifest.model, layout, weights, manifest.torch_dtype, manifest.quant_algo)
    step = Step.define(part, slot_size)
    graph.output("logits", logits(part, transformer(part, step)))


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part of a model, and the graph to which its layers are added."""

    graph: Graph
    model: ModelConfig
    layout: RankLayout
    weights: Weights
    dtype: torch.dtype
    quant_algo: str | None  # of the layers' matrices

    @property
    def tracks(self) -> int:
        return len(self.layout.tracks)

    def weight(self, name: str) -> Tensor:
        return self.graph.constant(self.weights[name], name)


@dataclass(frozen=True, slots=True)
class Step:
    """The inputs of a step, and what all layers compute from them once."""

    tokens: Tensor  # int32 [B, S]
    positions: Tensor  # int32 [B, S]: of each token in its sequence
    starts: Tensor  # int32 [B]: position of each slot's first token in this step
    lengths: Tensor  # int32 [B]: tokens of each slot after this step
    last: Tensor  # int32 [R]: the tokens whose logits are wanted, as indices into T
    slots: Tensor  # shape tensor [1]: B
    each: Tensor  # shape tensor [1]: S
    slot_size: int  # M
    masks: Mapping[int | None, Tensor]  # bool [B, 1, S, M]: the positions that a token sees, by the layer's window
    rotary: tuple[Tensor, Tensor] | None  # cos and sin [M, D/2]

    @classmethod
    def define(cls, part: Part, slot_size: int) -> Step:
        graph, model = part.graph, part.model
        tokens = graph.input("tokens", torch.int32, (-1, -1), ("slots", "each"))
        positions = graph.input("positions", torch.int32, (-1, -1), ("slots", "each"))
        starts, lengths = (graph.input(name, torch.int32, (-1,), ("slots",)) for name in ("starts", "lengths"))
        last = graph.input("last", torch.int32, (-1,), ("rows",))
        sizes = graph.sizes(tokens)
        slots, each = graph.slice(sizes, (0,), (1,)), graph.slice(sizes, (1,), (1,))
        layers = range(model.num_layers)
        own = graph.reshape(positions, graph.shape(slots, 1, each, 1))
        windows = {model.layer_window(layer): None for layer in layers}
        masks = {window: _mask(graph, own, window, slot_size) for window in windows}
        tables = None
        if any(model.has_rope(layer) for layer in layers):
            cos, sin = rotary(model, torch.arange(slot_size), part.dtype)
            tables = graph.constant(cos, "rope.cos"), graph.constant(sin, "rope.sin")
        return cls(tokens, positions, starts, lengths, last, slots, each, slot_size, masks, tables)


def _mask(graph: Graph, own: Tensor, window: int | None, slot_size: int) -> Tensor:
    """Return which positions [B, 1, S, M] the tokens at positions `own` [B, 1, S, 1] see: up to their own, and of these
    the last `window` if that is not None."""
    with graph.scope("mask"):
        keys = graph.constant(torch.arange(slot_size, dtype=torch.int32).view(1, 1, 1, -1), "keys")
        seen = graph.negate(graph.greater(keys, own))
        if window is None:
            return seen
        before = graph.constant(torch.full((1, 1, 1, 1), -window, dtype=torch.int32), "window")
        return graph.both(seen, graph.greater(keys, graph.add(own, before)))


def transformer(part: Part, step: Step) -> Tensor:
    """Return the normalised stream [R, W] of the tokens at `last`."""
    graph, width = part.graph, part.model.hidden_size
    x = graph.reshape(graph.rows(part.weight("transformer.vocab_embedding.weight"), step.tokens), (1, -1, width))
    x = walk.walk(schedule_of(part.model), TrackOps(part, step), x)
    x = graph.rows(graph.reshape(x, (-1, width)), step.last)
    return norm(part, "transformer.ln_f", x)


class TrackOps(walk.TrackOps[Tensor]):
    """The operations of the schedule walker.

    The shared stream is [1, T, W] and the tracks' own streams are [K, T, W].
    """

    def __init__(self, part: Part, step: Step) -> None:
        super().__init__(part.model, [Layer(part, step, layer) for layer in range(part.model.num_layers)])
        self.part, self.graph, self.step = part, part.graph, step
        schedule = schedule_of(part.model)
        starts = [start.key for start in schedule if isinstance(start, Start)]
        self.to_come = iter(zip(starts, unordered(schedule), strict=True))  # the place of each all-reduce
        self.previous: Tensor | None = None  # the result of the last all-reduce

    def sublayer(self, run: Run, x: Tensor) -> Tensor:
        layer: Layer = self.layers[run.layer]
        return layer.attention_out(x) if run.place == "attention" else layer.ffn_out(x)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.graph.add(a, b)

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """Return the sum or mean over all tracks of all ranks, [1, T, W]. No other code of the network all-reduces.

        Every rank holds equally many tracks, so the mean of the ranks' means is the mean of all tracks.
        """
        place, is_unordered = next(self.to_come)
        if self.part.tracks > 1:
            x = self.graph.reduce(x, op, axis=0)
        if self.part.layout.ranks > 1:
            if is_unordered:
                x = self._after(self.previous, x)
            x = self.previous = self.graph.all_reduce(x, op, self.part.layout.ranks, all_reduce_name(*place))
        return x

    def _after(self, previous: Tensor, x: Tensor) -> Tensor:
        """Return x as a tensor that cannot be computed before the result of the previous all-reduce is there.

        Ranks that start two all-reduces in different orders wait for each other forever. Where the second does not read
        the result of the first, TensorRT may choose the order, so it is made to read it here. The condition is always
        true, but depends on an input of the step, so the compiler cannot know that.
        """
        graph = self.graph
        start = graph.reshape(graph.slice(self.step.starts, (0,), (1,)), (1, 1, 1))
        below = graph.constant(torch.full((1, 1, 1), -1, dtype=torch.int32), "below")
        return graph.select(graph.greater(start, below), x, previous)

    def scale_mean(self, x: Tensor) -> Tensor:
        return self.graph.divide(x, self.graph.scalar(self.model.tracks, self.part.dtype, 3, "tracks"))


class Layer:
    """The two sub-layers of a layer with their norms, without the residual adds.

    Their input x is [K, T, W], or [1, T, W] if it is the same on all tracks.
    """

    def __init__(self, part: Part, step: Step, layer: int) -> None:
        self.part, self.step, self.layer = part, step, layer
        self.prefix = f"transformer.layers.{layer}"

    def attention_out(self, x: Tensor) -> Tensor:
        """Return the attention's output [K, T, W], to be added to x."""
        y = attention(self.part, self.step, self.layer, self._norm("input_layernorm", x))
        return self._norm("attention_residual_layernorm", y) if self.part.model.residual_norm else y

    def ffn_out(self, x: Tensor) -> Tensor:
        """Return the FFN's output [K, T, W], to be added to x."""
        ffn = experts if self.part.model.is_moe(self.layer) else gated_mlp
        y = ffn(self.part, f"{self.prefix}.", self._norm("post_layernorm", x))
        return self._norm("mlp_residual_layernorm", y) if self.part.model.residual_norm else y

    def shared_bias(self) -> Tensor:
        name = f"{self.prefix}.{SHARED_BIAS}"
        return self.part.graph.constant(self.part.weights[name].view(1, 1, -1), name)

    def dispatch_layernorm(self, x: Tensor) -> Tensor:
        return self._norm("dispatch_layernorm", x)

    def combine_layernorm(self, x: Tensor) -> Tensor:
        return self._norm("combine_layernorm", x)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return norm(self.part, f"{self.prefix}.{name}", x)


def attention(part: Part, step: Step, layer: int, x: Tensor) -> Tensor:
    """Return the attention's output [K, T, W], with one attention layer over the heads of all tracks."""
    graph, model, name = part.graph, part.model, f"transformer.layers.{layer}.attention"
    size, heads, kv_heads = model.head_size, len(part.layout.heads), len(part.layout.kv_heads)
    qkv = linear(part, f"{name}.qkv", x)
    with graph.scope(name):
        q = _heads(part, step, qkv, 0, heads)
        k = _heads(part, step, qkv, heads, kv_heads)
        v = _heads(part, step, qkv, heads + kv_heads, kv_heads)
        q, k = (_normed_and_rotated(part, step, layer, which, y) for which, y in (("q", q), ("k", k)))
        k, v = (_cached(part, step, cache, new) for cache, new in zip(cache_names(layer), (k, v), strict=True))
        q = graph.multiply(q, graph.scalar(size**-0.5, part.dtype, 4, "scale"))
        y = graph.attention(q, k, v, step.lengths, step.masks[model.layer_window(layer)])  # [B, K * H, S, D]
        shape = graph.shape(step.slots, part.tracks, heads, step.each, size)
        y = graph.reshape(graph.reshape(y, shape, after=(1, 0, 3, 2, 4)), (part.tracks, -1, heads * size))
    return linear(part, f"{name}.dense", y)


def _heads(part: Part, step: Step, qkv: Tensor, first: int, count: int) -> Tensor:
    """Return `count` heads of each track, from number `first` on: [K, T, (H + 2 G) D] -> [B, K * count, S, D]."""
    graph, size, tracks = part.graph, part.model.head_size, part.tracks
    tokens = graph.slice(graph.sizes(qkv), (1,), (1,))
    y = graph.slice(qkv, (0, 0, first * size), graph.shape(tracks, tokens, count * size))
    y = graph.reshape(y, graph.shape(tracks, step.slots, step.each, count, size), after=(1, 0, 3, 2, 4))
    return graph.reshape(y, graph.shape(step.slots, tracks * count, step.each, size))


def _normed_and_rotated(part: Part, step: Step, layer: int, which: str, x: Tensor) -> Tensor:
    """Return q or k [B, K * heads, S, D] with the QK norm and RoPE, in the order that the model has them."""
    model, name = part.model, f"transformer.layers.{layer}.attention.{which}_layernorm"
    if model.qk_norm and not model.qk_norm_after_rope:
        x = head_norm(part, name, x)
    if model.has_rope(layer):
        assert step.rotary is not None
        x = part.graph.rotate(x, *step.rotary, step.positions)
    return head_norm(part, name, x) if model.qk_norm_after_rope else x


def _cached(part: Part, step: Step, name: str, new: Tensor) -> Tensor:
    """Write K or V [B, K * G, S, D] into the layer's cache and return the whole cache [B, K * G, M, D]."""
    heads = part.tracks * len(part.layout.kv_heads)
    cache = part.graph.input(name, part.dtype, (-1, heads, step.slot_size, part.model.head_size), ("slots",))
    updated = part.graph.update_cache(cache, new, step.starts)
    part.graph.output(f"new_{name}", updated)
    return updated


def gated_mlp(part: Part, prefix: str, x: Tensor) -> Tensor:
    """Return SwiGLU: down(silu(gate(x)) * up(x))."""
    gate, up = (linear(part, prefix + name.removesuffix(".weight"), x) for name in (GATE, UP))
    with part.graph.scope(f"{prefix}mlp"):
        hidden = part.graph.multiply(silu(part.graph, gate), up)
    return linear(part, prefix + DOWN.removesuffix(".weight"), hidden)


def experts(part: Part, prefix: str, x: Tensor) -> Tensor:
    """Return the mixture of experts, as one wide gated FFN over the rows of all experts: x [K, T, W] -> [K, T, W].

    Each expert's hidden rows are multiplied by its weight, which is 0 for the experts that the router did not choose.
    TensorRT's own layer for experts (`add_moe`) cannot be compiled for most GPUs.
    """
    graph = part.graph
    up, gate = part.weights[prefix + UP_GATE].chunk(2, 2)  # [K, E, F, W] each
    down = part.weights[prefix + DOWN].transpose(1, 2)  # [K, W, E, F]
    count, rows = up.shape[1:3]
    with graph.scope(f"{prefix}mlp"):
        chosen = graph.reshape(router(part, prefix, x), (part.tracks, -1, count, 1))
        gate, up = (
            graph.product(x, graph.constant(w.flatten(1, 2), n), transposed=True)
            for w, n in ((gate, "gate"), (up, "up"))
        )
        hidden = graph.reshape(graph.multiply(silu(graph, gate), up), (part.tracks, -1, count, rows))
        hidden = graph.reshape(graph.multiply(hidden, chosen), (part.tracks, -1, count * rows))
        return graph.product(hidden, graph.constant(down.flatten(2), "down"), transposed=True)


def router(part: Part, prefix: str, x: Tensor) -> Tensor:
    """Return the weight [K, T, E] of every expert, computed in float32 because rounding may change the choice."""
    graph, model = part.graph, part.model
    with graph.scope("router"):
        table = graph.constant(part.weights[f"{prefix}mlp.router.weight"].float(), "weight")
        found = graph.product(graph.cast(x, torch.float32), table, transposed=True)
        if (cap := model.router_logits_cap) is not None:
            limit = graph.scalar(cap, torch.float32, 3, "cap")
            found = graph.multiply(graph.tanh(graph.divide(found, limit)), limit)
        values, indices = graph.largest(found, model.experts_per_token, axis=2)
        weights = graph.reshape(graph.softmax(values, axis=2), (part.tracks, -1, model.experts_per_token, 1))
        hot = graph.one_hot(indices, model.num_experts, torch.float32)  # [K, T, chosen, E]
        return graph.cast(graph.reduce(graph.multiply(hot, weights), "sum", axis=2, keep=False), part.dtype)


def logits(part: Part, x: Tensor) -> Tensor:
    """Return float32 logits [R, V] of x [R, W]. Each rank computes its slice of the vocabulary, and all gather them.

    The product has the vocabulary as its first axis, because that is the axis along which TensorRT gathers.
    """
    graph = part.graph
    y = graph.product(part.weight("lm_head.weight"), x, transposed=True)  # [V / ranks, R]
    if part.layout.ranks > 1:
        y = graph.all_gather(y, part.layout.ranks, GATHER)
    return graph.cast(graph.transpose(y, (1, 0)), torch.float32)


def linear(part: Part, name: str, x: Tensor) -> Tensor:
    """Return the product of x [K, T, I] with a weight [O, I] per track, [K, T, O]."""
    graph = part.graph
    with graph.scope(name):
        if part.quant_algo == "FP8":
            x = rounded_to_fp8(part, name, x)
        y = graph.product(x, matrix(part, name), transposed=True)
        if f"{name}.bias" in part.weights:
            y = graph.add(y, graph.constant(part.weights[f"{name}.bias"][:, None], "bias"))
    return y


def matrix(part: Part, name: str) -> Tensor:
    """Return a weight [K, O, I], which is dequantised first if it is quantised.

    The layers have the form in which the compiler makes them a part of the product, so that the dequantised weight is
    never stored: two axes, and for int4 blocks of inputs that have a scale each, here all the same. A product of two
    FP8 factors becomes one in FP8.
    """
    graph, stored = part.graph, part.weights[f"{name}.weight"]
    if part.quant_algo is None:
        return graph.constant(stored, "weight")
    if part.quant_algo == "FP8":
        weight = graph.constant(stored.flatten(0, 1), "weight")
        y = graph.dequantize(weight, fp8_scale(part, f"{name}.weights_scaling_factor"))
        return graph.reshape(y, tuple(stored.shape))
    scale = part.weights[f"{name}.per_channel_scale"].flatten()
    if part.quant_algo == "W4A16":
        weight = graph.int4_constant(stored.flatten(0, 1), "weight")
        blocks = weight.shape[1] // int4_block(weight.shape[1])
        y = graph.dequantize(weight, graph.constant(scale[:, None].expand(-1, blocks), "scale"))
    else:
        weight = graph.constant(stored.flatten(0, 1), "weight")
        y = graph.dequantize(weight, graph.constant(scale, "scale"), axis=0)
    return graph.reshape(y, (part.tracks, -1, weight.shape[1]))


def rounded_to_fp8(part: Part, name: str, x: Tensor) -> Tensor:
    """Return the input of a matrix as FP8 has it, with the scale that calibration found."""
    scale = fp8_scale(part, f"{name}.activation_scaling_factor")
    return part.graph.dequantize(part.graph.quantize(x, scale), scale)


def fp8_scale(part: Part, name: str) -> Tensor:
    """Return the scale of the only track's matrix as a scalar in the model's dtype, which has powers of two exactly."""
    return part.graph.constant(part.weights[name].reshape(()).to(part.dtype), name.rpartition(".")[2])


def int4_block(columns: int) -> int:
    """Return the number of inputs of a block of int4: 64 or 128, of which a row has at least two if it can."""
    return 64 if columns % 128 or columns == 128 else 128


def norm(part: Part, name: str, x: Tensor) -> Tensor:
    """Return the RMSNorm of x [K, T, W] with a weight per track [K, W], or of x [R, W] with a weight [W]."""
    weight = part.weights[f"{name}.weight"]
    return rms_norm(part, name, x, weight[:, None] if weight.dim() == 2 else weight[None])


def head_norm(part: Part, name: str, x: Tensor) -> Tensor:
    """Return the RMSNorm of each head of x [B, K * heads, S, D], with a weight per track."""
    weight = part.weights[f"{name}.weight"]  # [K, D]
    return rms_norm(part, name, x, weight.repeat_interleave(x.shape[1] // part.tracks, 0)[None, :, None])


def rms_norm(part: Part, name: str, x: Tensor, weight: torch.Tensor) -> Tensor:
    """Return x over the root of its mean square, times `weight`. It is computed in float32.

    TensorRT's layer for norms also subtracts the mean; its compiler makes one kernel of these layers.
    """
    graph, axes = part.graph, len(x.shape)
    with graph.scope(name):
        wide = graph.cast(x, torch.float32)
        mean = graph.reduce(graph.multiply(wide, wide), "mean", axis=axes - 1)
        root = graph.square_root(graph.add(mean, graph.scalar(part.model.norm_eps, torch.float32, axes, "eps")))
        scaled = graph.multiply(graph.divide(wide, root), graph.constant(weight.float(), "weight"))
        return graph.cast(scaled, part.dtype)


def silu(graph: Graph, x: Tensor) -> Tensor:
    return graph.multiply(x, graph.sigmoid(x))
