"""One rank's paged KV cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.tensorrt_llm.checkout.execute.values import WORKING, ExecutionError


class PagedCache:
    """A pool of pages per layer. What was never written is NaN: who reads it gets NaN logits."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._layers: dict[tuple[int, int], Tensor] = {}

    def layer(self, pool: int, number: int, tokens_per_page: int, heads: int, size: int) -> Tensor:
        """[pages, tokens, heads, size], made when it is first asked for."""
        shape = (self.pages, tokens_per_page, heads, size)
        found = self._layers.setdefault((pool, number), torch.full(shape, math.nan, dtype=WORKING))
        if found.shape != shape:
            raise ExecutionError(f"two layers share cache layer {number}: {list(found.shape)} and {list(shape)}")
        return found


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
