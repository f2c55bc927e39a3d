"""TensorRT-LLM's plugins that neither look at other tokens nor at other ranks, in PyTorch.

`PLUGINS[kind](plugin, *inputs)` gives the output, or a tuple of them. Attention and experts have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.experts import experts
from tests.backends.tensorrt_llm.checkout.execute.packed import plain_weight
from tests.backends.tensorrt_llm.checkout.execute.values import WORKING, ExecutionError
from tests.backends.tensorrt_llm.checkout.tensorrt.plugins import Plugin


def _identity(_: Plugin, x: Tensor) -> Tensor:
    return x


def _gemm(plugin: Plugin, left: Tensor, right: Tensor) -> Tensor:
    if any(plugin.scalar(name, 0) for name in ("pad_lda", "pad_ldb", "pad_ldc")):
        raise ExecutionError("a Gemm plugin with padding is not known")
    left = left.mT if plugin.scalar("transa") else left
    right = right.mT if plugin.scalar("transb") else right
    return plugin.scalar("alpha", 1.0) * (left @ right)


def _lookup(plugin: Plugin, tokens: Tensor, table: Tensor) -> Tensor:
    """The rows of a part of the table that starts at row `rank` times its height; other tokens get zeros."""
    row = tokens - plugin.scalar("rank", 0) * table.shape[0]
    here = (row >= 0) & (row < table.shape[0])
    return table[row.clamp(0, table.shape[0] - 1)] * here[..., None]


def _topk(plugin: Plugin, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, plugin.scalar("k"), -1, largest=bool(plugin.scalar("is_largest")))
    return values, indices


def _weight_only(_: Plugin, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x @ (plain_weight(weight, scale.shape[-1]).to(WORKING) * scale)


PLUGINS: dict[str, Callable[..., Any]] = {
    "Gemm": _gemm,
    "Identity": _identity,
    "Lookup": _lookup,
    "MixtureOfExperts": experts,
    "TopkLastDim": _topk,
    "WeightOnlyQuantMatmul": _weight_only,
}
