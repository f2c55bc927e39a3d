"""One rank's paged KV cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.values import WORKING, ExecutionError


class PagedCache:
    """Pages of the geometry that the runtime takes from the engine's config.json, for every layer.

    What was never written is NaN: who reads it gets NaN logits.
    """

    def __init__(self, pages: int, tokens_per_page: int, heads: int, size: int) -> None:
        self.shape = (pages, tokens_per_page, heads, size)
        self._layers: dict[tuple[int, int], Tensor] = {}

    def layer(self, pool: int, number: int, heads: int, size: int) -> Tensor:
        """[pages, tokens, heads, size] for a layer that has `heads` of `size`."""
        if self.shape[2:] != (heads, size):
            raise ExecutionError(f"the cache has KV heads {list(self.shape[2:])}, the attention {[heads, size]}")
        if (pool, number) not in self._layers:
            self._layers[pool, number] = torch.full(self.shape, math.nan, dtype=WORKING)
        return self._layers[pool, number]


class Pages:
    """One sequence's keys, or its values, in the pages of one layer."""

    def __init__(self, layer: Tensor, numbers: Tensor) -> None:
        self.layer, self.numbers = layer, numbers

    def write(self, positions: Tensor, values: Tensor) -> None:
        size = self.layer.shape[1]
        self.layer[self.numbers[positions // size], positions % size] = values

    def read(self, count: int) -> Tensor:
        """The first `count` tokens, [count, heads, size]."""
        positions, size = torch.arange(count), self.layer.shape[1]
        return self.layer[self.numbers[positions // size], positions % size]
