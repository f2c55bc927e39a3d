"""The kernels of one forward on one rank: the FLOP and the bytes of each.

What a rank holds comes from `model/tensors.py` and `model/layout.py`, so that nothing here knows how a schedule divides
a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import DTYPE_BYTES, is_expert
from trtllm_pt.model.layout import RankLayout, padded_vocab_size, rank_layout
from trtllm_pt.model.schedule import Place
from trtllm_pt.model.tensors import GATE, UP, TensorSpec, tensors

Kind = Literal["matrix", "attention", "memory"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """The FLOP and bytes of a kernel. For attention, `streams` counts the pairs of a sequence and a KV head."""

    kind: Kind
    flops: float
    bytes: float
    streams: float = 0


@dataclass(frozen=True, slots=True)
class Work:
    """The tokens of one forward: every sequence has `past` tokens in the cache and gets `new` ones."""

    sequences: float
    new: int
    past: float = 0

    @property
    def tokens(self) -> float:
        """The new tokens of all sequences."""
        return self.sequences * self.new

    def keys(self, window: int | None) -> float:
        """Return the number of keys that all new tokens attend to. Token i of a sequence attends to past + i keys."""
        seen = self.past + (self.new + 1) / 2
        if window is None or self.past + self.new <= window:
            return self.tokens * seen
        growing = max(0.0, min(self.new, window - self.past))  # tokens that see fewer keys than the window has
        return self.sequences * (growing * (self.past + (growing + 1) / 2) + (self.new - growing) * window)

    def cached(self, window: int | None) -> float:
        """Return the number of tokens of all sequences whose keys and values are read from the cache."""
        whole = self.past + self.new
        return self.sequences * (whole if window is None else min(whole, window + self.new - 1))


class Kernels:
    """The kernels of `config` on rank 0 of `ranks`, by sub-layer. Raises UsageError if the ranks cannot divide it."""

    def __init__(self, config: ModelConfig, ranks: int, dtype: str) -> None:
        self.config, self.ranks, self.dtype = config, ranks, dtype
        self.layout: RankLayout = rank_layout(config, ranks)
        self.tracks = len(self.layout.tracks)
        self._size = DTYPE_BYTES[dtype]
        self._specs: dict[tuple[int, Place], list[TensorSpec]] = {}
        self._block_norms: dict[tuple[str, int], TensorSpec] = {}
        for spec in tensors(config):
            self._file(spec)

    def _file(self, spec: TensorSpec) -> None:
        """Sort a tensor into its sub-layer or its block norm."""
        parts = spec.name.split(".")
        if parts[1] != "layers":
            return
        layer, part = int(parts[2]), parts[3]
        if part in ("dispatch_layernorm", "combine_layernorm"):
            self._block_norms[part, layer] = spec
            return
        place: Place = (
            "attention" if part in ("input_layernorm", "attention", "attention_residual_layernorm") else "ffn"
        )
        self._specs.setdefault((layer, place), []).append(spec)

    def sub_layer(self, layer: int, place: Place, work: Work) -> Iterator[Kernel]:
        """Yield the kernels of a sub-layer: its norm with the residual add before it, its products, and the rest."""
        for spec in self._specs[layer, place]:
            if spec.kind == "norm":
                yield self._norm(spec, work)
        yield from self._products(self._specs[layer, place], work)
        if place == "attention":
            yield self._rope_and_cache(work)
            yield self._attention(layer, work)
        else:
            yield from self._activation(layer, work)

    def block_norm(
        self, name: Literal["dispatch_layernorm", "combine_layernorm"], layer: int, work: Work
    ) -> list[Kernel]:
        """Return the norm before or after a track block, if the model has one."""
        spec = self._block_norms.get((name, layer))
        return [self._norm(spec, work)] if spec else []

    def merge(self, work: Work) -> Kernel:
        """Return the kernel before a boundary that sends whole streams: it adds, scales and sums the rank's tracks."""
        elements = work.tokens * self.config.hidden_size * (2 * self.tracks + 1)
        return Kernel("memory", elements, elements * self._size)

    def add(self, work: Work) -> Kernel:
        """Return the kernel that sums the rank's tracks before a boundary that sends partial sums."""
        elements = work.tokens * self.config.hidden_size * (self.tracks + 1)
        return Kernel("memory", elements, elements * self._size)

    def ends(self, work: Work) -> Iterator[Kernel]:
        """Yield the embedding, and the final norm and the head for the last token of every sequence."""
        width = self.config.hidden_size
        rows = padded_vocab_size(self.config, self.ranks) // self.ranks
        yield Kernel("memory", 0, 2 * work.tokens * width * self._size)
        yield Kernel("memory", 4 * work.sequences * width, 4 * work.sequences * width * self._size)
        yield self._product(1, rows, width, work.sequences)

    def _norm(self, spec: TensorSpec, work: Work) -> Kernel:
        """Return a norm, which reads the stream and what is added to it, and writes the stream and its norm."""
        heads = {"q_layernorm": len(self.layout.heads), "k_layernorm": len(self.layout.kv_heads)}
        per_token = heads.get(spec.name.split(".")[-2], 1) * spec.shape[0]
        elements = 4 * self.tracks * work.tokens * per_token
        return Kernel("memory", elements, elements * self._size)

    def _products(self, specs: list[TensorSpec], work: Work) -> Iterator[Kernel]:
        """Yield the matrix products of a sub-layer. Gate and up of a dense FFN are one product."""
        up = next((spec for spec in specs if spec.name.endswith(UP)), None)
        for spec in specs:
            if spec.kind not in ("matrix", "output", "router") or spec is up:
                continue
            shape = spec.rank_shape(self.config, self.layout)
            if is_expert(spec):
                yield self._expert_product(shape[-2], shape[-1], work)
                continue
            rows = shape[-2] * (2 if up and spec.name.endswith(GATE) else 1)
            yield self._product(self.tracks, rows, shape[-1], work.tokens)

    def _product(self, tracks: int, rows: int, columns: int, tokens: float) -> Kernel:
        moved = rows * columns + tokens * (rows + columns)
        return Kernel("matrix", 2 * tracks * tokens * rows * columns, tracks * moved * self._size)

    def _expert_product(self, rows: int, columns: int, work: Work) -> Kernel:
        """Return the product of the experts that some token chose: E (1 - (1 - k/E)^T) if the choices are uniform."""
        experts, chosen = self.config.num_experts, self.config.experts_per_token
        touched = experts * -math.expm1(work.tokens * math.log1p(-chosen / experts)) if chosen < experts else experts
        moved = touched * rows * columns + work.tokens * chosen * (rows + columns)
        flops = 2 * self.tracks * work.tokens * chosen * rows * columns
        return Kernel("matrix", flops, self.tracks * moved * self._size)

    def _rope_and_cache(self, work: Work) -> Kernel:
        rows = (len(self.layout.heads) + 2 * len(self.layout.kv_heads)) * self.config.head_size
        elements = 2 * self.tracks * work.tokens * rows
        return Kernel("memory", elements, elements * self._size)

    def _attention(self, layer: int, work: Work) -> Kernel:
        """Return the attention, with 4 FLOP per query element and key for scores and sums. It reads the cache once."""
        window, size = self.config.layer_window(layer), self.config.head_size
        inner = self.tracks * len(self.layout.heads) * size
        kv_heads = self.tracks * len(self.layout.kv_heads)
        moved = 2 * kv_heads * size * work.cached(window) + 2 * inner * work.tokens
        return Kernel("attention", 4 * inner * work.keys(window), moved * self._size, work.sequences * kv_heads)

    def _activation(self, layer: int, work: Work) -> Iterator[Kernel]:
        """Yield silu(gate) * up. With experts, also yield the sorting by expert and the sum of the outputs."""
        if not self.config.is_moe(layer):
            elements = 3 * self.tracks * work.tokens * len(self.layout.ffn)
            yield Kernel("memory", elements, elements * self._size)
            return
        chosen = self.tracks * work.tokens * self.config.experts_per_token
        for per_token in (3 * len(self.layout.experts_ffn), 2 * self.config.hidden_size, 2 * self.config.hidden_size):
            yield Kernel("memory", chosen * per_token, chosen * per_token * self._size)
