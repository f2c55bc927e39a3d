"""Deliberate mistakes in the network definition, as patches of it: each must be noticed wherever it is checked.

with MISTAKES["1/n forgotten"].made(definition): ...    # definition: the module trtllm_pt.backends.tensorrt_llm.network
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True, slots=True)
class Mistake:
    """It gives other logits, or the network does not run."""

    made: Callable[[ModuleType], AbstractContextManager[Any]]
    case: str  # the name of a case that it shows in
    ranks: int
    only_in_decode: bool = False  # prefill is right with it
    refused: bool = False  # it does not run


def _all_reduce_dropped(definition: ModuleType, only_rank: int | None = None) -> AbstractContextManager[Any]:
    """The forward's first, on all ranks or on one."""
    right = definition.TrackOps.all_reduce

    def all_reduce(self: Any, x: Any, op: str) -> Any:
        if hasattr(self, "dropped") or only_rank not in (None, self.config.mapping.rank):
            return right(self, x, op)
        self.dropped = True
        with patch.object(definition, "allreduce", lambda x, *_, **__: x):
            return right(self, x, op)

    return patch.object(definition.TrackOps, "all_reduce", all_reduce)


def _mean_forgotten(definition: ModuleType) -> AbstractContextManager[Any]:
    return patch.object(definition.TrackOps, "scale_mean", lambda self, x: x)


def _fc_and_gate_swapped(definition: ModuleType) -> AbstractContextManager[Any]:
    weights = importlib.import_module(f"{definition.__package__}.weights")
    right = weights.module_weights
    other = {"fc": "gate", "gate": "fc"}

    def module_weights(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = right(*args, **kwargs)
        return {".".join(other.get(part, part) for part in name.split(".")): value for name, value in found.items()}

    return patch.object(weights, "module_weights", module_weights)


def _heads_of_a_rank(definition: ModuleType) -> AbstractContextManager[Any]:
    """Instead of the totals, in what becomes the engine's config.json."""
    right = definition.ParallelTrackConfig.__init__

    def init(self: Any, **kwargs: Any) -> None:
        ranks = kwargs["mapping"]["tp_size"]
        names = ("num_attention_heads", "num_key_value_heads")
        right(self, **kwargs | {name: kwargs[name] // ranks for name in names})

    return patch.object(definition.ParallelTrackConfig, "__init__", init)


def _layer_index(definition: ModuleType) -> AbstractContextManager[Any]:
    """The second layer writes into the first one's cache."""
    right = definition.attention

    def attention(config: Any, layer: int) -> Any:
        made = right(config, layer)
        if layer == 1:
            made.local_layer_idx = 0
        return made

    return patch.object(definition, "attention", attention)


def _track_left_out(definition: ModuleType) -> AbstractContextManager[Any]:
    """The first of every rank."""
    right = definition.reduce_sum

    def reduce_sum(x: Any, dim: int) -> Any:
        return right(x, dim=dim) - definition.select(x, dim, 0)

    return patch.object(definition, "reduce_sum", reduce_sum)


def _cap_forgotten(definition: ModuleType) -> AbstractContextManager[Any]:
    return patch.object(definition, "capped_moe", lambda cap: definition.MOE)


def _not_reordered(definition: ModuleType) -> AbstractContextManager[Any]:
    """Weight-only matrices as they are stored, but for their axes."""
    weights = importlib.import_module(f"{definition.__package__}.weights")
    right = weights.kernel_order

    def kernel_order(weight: Any, *args: Any, **kwargs: Any) -> Any:
        return right(weight, *args, **kwargs).flip(-2).contiguous()

    return patch.object(weights, "kernel_order", kernel_order)


class _LooksGrouped:
    """A config whose heads seem to be more than its KV heads."""

    def __init__(self, config: Any) -> None:
        self.config, self.layout, self.model = config, config.layout, config.model.replace(num_kv_heads=1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _stock_attention(definition: ModuleType) -> AbstractContextManager[Any]:
    """TensorRT-LLM's own layer, where it takes normed q, k, v head by head."""
    right = definition.attention
    return patch.object(definition, "attention", lambda config, layer: right(_LooksGrouped(config), layer))


def _cache_scales_swapped(definition: ModuleType) -> AbstractContextManager[Any]:
    right = definition.gpt_attention

    def gpt_attention(*, kv_orig_quant_scale: Any, kv_quant_orig_scale: Any, **others: Any) -> Any:
        return right(kv_orig_quant_scale=kv_quant_orig_scale, kv_quant_orig_scale=kv_orig_quant_scale, **others)

    return patch.object(definition, "gpt_attention", gpt_attention)


def _tables_of_tensorrt_llm(definition: ModuleType) -> AbstractContextManager[Any]:
    """Those of a model whose config has no scaling."""
    right = definition.rotary_tables
    return patch.object(definition, "rotary_tables", lambda model: right(model.replace(rope_scaling=None)))


# Where numbers, geometry or collectives are checked. The four first and the layer index are checked on the real builder
# too.
MISTAKES = {
    "an all-reduce dropped": Mistake(_all_reduce_dropped, "pt", 4),
    "an all-reduce dropped on one rank": Mistake(partial(_all_reduce_dropped, only_rank=1), "pt", 4, refused=True),
    "1/n forgotten": Mistake(_mean_forgotten, "pt", 8),
    "fc and gate swapped": Mistake(_fc_and_gate_swapped, "pt", 8),
    "heads of a rank in the config": Mistake(_heads_of_a_rank, "pt", 4, refused=True),
    "one layer index wrong": Mistake(_layer_index, "pt", 8, only_in_decode=True),
    "one layer index wrong, many tracks": Mistake(_layer_index, "pt", 2, only_in_decode=True),
    "a track left out": Mistake(_track_left_out, "pt", 2),
    "the router's cap forgotten": Mistake(_cap_forgotten, "pt moe", 8),
    "stock attention with normed heads": Mistake(_stock_attention, "pt qk norm mha", 8),
    "weights not in the kernels' order": Mistake(_not_reordered, "pt W8A16", 4),
    "the cache's scales swapped": Mistake(_cache_scales_swapped, "pt FP8 kv", 2),
    "RoPE's tables without their scaling": Mistake(_tables_of_tensorrt_llm, "pt rope yarn", 4),
    "the attention factor forgotten": Mistake(
        lambda d: patch.object(d, "q_scaling", lambda *_: 1.0), "pt rope yarn", 8
    ),
}


@contextmanager
def _calling(definition: ModuleType, name: str, **changes: Any) -> Iterator[None]:
    """Calls of a function with a keyword more, or, where its value is None, one less."""
    right = getattr(definition, name)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if changes.get(key, key) is not None}
        return right(*args, **kwargs, **{key: value for key, value in changes.items() if value is not None})

    with patch.object(definition, name, wrong):
        yield


# What the signatures do not take, with the error that says so.
WRONG_CALLS: dict[str, tuple[Callable[[ModuleType], AbstractContextManager[Any]], type[Exception], str]] = {
    "a keyword that does not exist": (lambda d: _calling(d, "rms_norm", epsilon=1e-5), TypeError, "epsilon"),
    "a keyword of a layer": (lambda d: _calling(d, "ColumnLinear", gather_outputs=True), TypeError, "gather_outputs"),
    "an argument missing": (
        lambda d: _calling(d, "gpt_attention", host_request_types=None),
        TypeError,
        "host_request_types",
    ),
    "an enum's member that does not exist": (
        lambda d: patch.object(d, "position_type", lambda *_: d.PositionEmbeddingType.rope_neox),
        AttributeError,
        "rope_neox",
    ),
    "a method that does not exist": (
        lambda d: patch.object(d, "unsqueeze", lambda x, dim: x.expand_dims(dim)),
        AttributeError,
        "expand_dims",
    ),
    "a size that is unknown when an engine is built": (
        lambda d: patch.object(
            d.TrackAttention, "track_after_track", lambda self, part, heads: part.view([part.size(1), -1])
        ),
        ValueError,
        "inferred",
    ),
    "operands of two dtypes": (
        lambda d: patch.object(d, "silu", lambda x: d.cast(x, "float16")),
        TypeError,
        "strongly typed",
    ),
}
