"""The model configuration and its validation. An error names the field, its value and what would be right."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.rope import rope_problems

SCHEDULES = ("tp", "pt", "spd", "desync", "parallel", "ladder", "dtp")
# The result of these schedules depends on the number of tracks, which is therefore a property of the checkpoint. The
# other schedules have one track, whose heads and FFN layout.py splits over the ranks.
TRACKED = ("pt", "spd", "desync", "dtp")
ATTENTION_KINDS = ("global", "sliding", "global_nope", "sliding_nope")
FFN_KINDS = ("dense", "moe")
# Keys that Hugging Face's tools expect in a config.json. They are written, and ignored when reading.
HF_KEYS = {"model_type": "parallel_track", "architectures": ["ParallelTrackForCausalLM"]}
# Keys that transformers adds to any config.json. None of them changes what a model computes.
TRANSFORMERS_KEYS = frozenset({
    "auto_map", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype", "transformers_version",
    "use_cache",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The configuration of a decoder with `tracks` tracks.

    Heads, KV heads, head_size, FFN widths, experts and hidden_size are those of one track. Raises UsageError for the
    first field that is invalid or contradicts another.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 2048

    tracks: int = 1
    schedule: str = "tp"
    block_depth: int | None = None  # pt: layers per track block (the paper's D)
    sync_every: int | None = None  # desync: layers per all-reduce
    delay: int | None = None  # dtp: sub-layers that run before the other tracks' outputs of one arrive
    dropped_layers: tuple[int, ...] = ()  # spd: layers without an all-reduce after attention
    combine: str = "mean"  # pt: how a block boundary merges the tracks: "mean" or "sum"
    dispatch_norm: bool = False  # pt: each track has a norm at the start of every block
    combine_norm: bool = False  # pt: each track has a norm before every block boundary

    attention_pattern: tuple[str, ...] = ("global",)  # layer i has kind i mod length
    window: int | None = None  # tokens that a sliding layer attends to, including the current token
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # {"rope_type": …}; rope.py has the types and their keys
    qk_norm: bool = False
    qk_norm_after_rope: bool = False  # tamm applies RoPE before the norms, other models after them
    residual_norm: bool = False  # a norm on the output of each sub-layer, before the residual add
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    output_bias: bool = False  # a bias of the attention output projection; schedules tp and spd

    ffn_pattern: tuple[str, ...] = ("dense",)
    num_experts: int = 0  # per track
    experts_per_token: int = 0  # per track
    moe_intermediate_size: int = 0
    router_logits_cap: float | None = None  # c: the router's logits become c * tanh(logits / c)

    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise UsageError(problem)

    def attention_kind(self, layer: int) -> str:
        """Return the layer's kind of attention, one of ATTENTION_KINDS."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def has_rope(self, layer: int) -> bool:
        return not self.attention_kind(layer).endswith("nope")

    def layer_window(self, layer: int) -> int | None:
        """Return how many tokens the layer attends to, including the current one, or None for all tokens."""
        return self.window if self.attention_kind(layer).startswith("sliding") else None

    def is_moe(self, layer: int) -> bool:
        return self.ffn_pattern[layer % len(self.ffn_pattern)] == "moe"

    @property
    def block_layers(self) -> int:
        """The number of layers per block, at whose end the tracks' streams merge; num_layers for other schedules."""
        return self.block_depth or self.sync_every or self.num_layers

    def starts_block(self, layer: int) -> bool:
        """Return whether the layer is the first of a block."""
        return layer % self.block_layers == 0

    def ends_block(self, layer: int) -> bool:
        """Return whether the layer is the last of a block. The model's last block may be shorter than the others."""
        return (layer + 1) % self.block_layers == 0 or layer + 1 == self.num_layers

    @property
    def has_moe(self) -> bool:
        return any(self.is_moe(layer) for layer in range(self.num_layers))

    @property
    def has_shared_bias(self) -> bool:
        """Whether the bias of the attention output is added to the shared stream, outside of the tracks' outputs.

        In spd each track reads the whole bias before the all-reduce, and the sum over the tracks must not contain it
        once per track. In tp it is part of the first rank's output.
        """
        return self.output_bias and self.schedule == "spd"

    @property
    def has_dense_bias(self) -> bool:
        """Whether the output projection of attention adds the bias itself."""
        return self.output_bias and not self.has_shared_bias

    @property
    def qkv_size(self) -> int:
        """The number of rows of one track's fused QKV projection, in the order q, k, v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed, validated like any config."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return every field and the keys HF_KEYS, as a JSON object."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return HF_KEYS | {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Read a config from a JSON object.

        Raises UsageError for an unknown key (suggesting the nearest known one), a missing field or an invalid value.
        """
        if not isinstance(data, dict):
            raise UsageError(f"the model config is a JSON {type(data).__name__}; it must be an object")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key in HF_KEYS or key in TRANSFORMERS_KEYS:
                continue
            if key not in fields:
                raise unknown_key(key, fields, "the model config")
            values[key] = tuple(value) if isinstance(value, list) else value
        missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values]
        if missing:
            raise UsageError(f"the model config lacks {', '.join(map(repr, missing))}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a config from a JSON file. Raises UsageError as `read_json` and `from_json` do."""
        return cls.from_json(read_json(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises UsageError, naming the file, if it holds none."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a readable JSON file: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a JSON {type(data).__name__}; it must hold an object")
    return data


def unknown_key(key: str, known: Iterable[str], where: str) -> UsageError:
    """Return the error for an unknown key. It suggests the nearest key in `known`, if one is near."""
    near = difflib.get_close_matches(key, known, 1)
    return UsageError(f"unknown key {key!r} in {where}" + (f"; did you mean {near[0]!r}?" if near else ""))


_COUNTS = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "vocab_size",
    "max_position_embeddings",
    "tracks",
)
_MOST = 2**31 - 1  # the largest value of any integer field
_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a list",
    dict: "an object",
}


def _problems(c: ModelConfig) -> Iterator[str]:
    yield from _wrong_types(c)
    for name in _COUNTS:
        if getattr(c, name) < 1:
            yield f"{name} ({getattr(c, name)}) must be at least 1"
        if getattr(c, name) > _MOST:
            yield f"{name} ({getattr(c, name)}) must not exceed {_MOST}"
    for name in ("intermediate_size", "num_experts", "experts_per_token", "moe_intermediate_size"):
        if not 0 <= getattr(c, name) <= _MOST:
            yield f"{name} ({getattr(c, name)}) must be between 0 and {_MOST}"
    if c.num_heads % c.num_kv_heads:
        yield f"num_kv_heads ({c.num_kv_heads}) must divide num_heads ({c.num_heads})"
    if c.head_size % 2:
        yield f"head_size ({c.head_size}) must be even"
    if c.norm_eps <= 0:
        yield f"norm_eps ({c.norm_eps}) must be above 0"
    yield from _schedule_problems(c)
    yield from _attention_problems(c)
    yield from _ffn_problems(c)


def _wrong_types(c: ModelConfig) -> Iterator[str]:
    for field in dataclasses.fields(c):
        value, declared = getattr(c, field.name), str(field.type)
        if value is None and "None" in declared:
            continue
        wanted: type = next(kind for kind in _KINDS if declared.startswith(kind.__name__))
        good = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if (
            not good
            or (isinstance(value, bool) and wanted is not bool)
            or (wanted is float and not math.isfinite(value))
        ):
            yield f"{field.name} ({value!r}) must be {_KINDS[wanted]}"


def _schedule_problems(c: ModelConfig) -> Iterator[str]:
    if c.schedule not in SCHEDULES:
        yield f"schedule ({c.schedule!r}) must be one of {', '.join(SCHEDULES)}"
    if c.schedule not in TRACKED and c.tracks != 1:
        yield f"tracks ({c.tracks}) must be 1 for schedule {c.schedule!r}, whose heads and FFN are split over the ranks"
    for name, owner in (("block_depth", "pt"), ("sync_every", "desync")):
        value = getattr(c, name)
        if c.schedule != owner:
            if value is not None:
                yield f"{name} ({value}) belongs to schedule {owner!r}, not to {c.schedule!r}"
        elif value is None:
            yield f"schedule {owner!r} needs {name}"
        elif not 1 <= value <= c.num_layers:
            yield f"{name} ({value}) must be between 1 and num_layers ({c.num_layers})"
    if c.schedule != "dtp":
        if c.delay is not None:
            yield f"delay ({c.delay}) belongs to schedule 'dtp', not to {c.schedule!r}"
    elif c.delay is None:
        yield "schedule 'dtp' needs delay"
    elif not 0 <= c.delay < 2 * c.num_layers:
        yield f"delay ({c.delay}) must be between 0 and 2 * num_layers - 1 ({2 * c.num_layers - 1})"
    if c.dropped_layers and c.schedule != "spd":
        yield f"dropped_layers ({list(c.dropped_layers)}) belongs to schedule 'spd', not to {c.schedule!r}"
    for layer in c.dropped_layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < c.num_layers:
            yield f"dropped_layers ({layer!r}) must be layers between 0 and num_layers - 1 ({c.num_layers - 1})"
    if len(set(c.dropped_layers)) != len(c.dropped_layers):
        yield f"dropped_layers ({list(c.dropped_layers)}) must name each layer only once"
    if c.combine not in ("mean", "sum"):
        yield f"combine ({c.combine!r}) must be 'mean' or 'sum'"
    for name, default in (("combine", "mean"), ("dispatch_norm", False), ("combine_norm", False)):
        if c.schedule != "pt" and getattr(c, name) != default:
            yield f"{name} ({getattr(c, name)}) belongs to schedule 'pt', not to {c.schedule!r}"
    if c.output_bias and c.schedule not in ("tp", "spd"):
        yield f"output_bias (true) belongs to schedules 'tp' and 'spd', not to {c.schedule!r}"
    if c.has_shared_bias and c.residual_norm:
        yield "output_bias (true) must be false for residual_norm (true) with schedule 'spd'"


def _attention_problems(c: ModelConfig) -> Iterator[str]:
    if not c.attention_pattern:
        yield "attention_pattern must not be empty"
    for kind in c.attention_pattern:
        if kind not in ATTENTION_KINDS:
            yield f"attention_pattern ({kind!r}) must be one of {', '.join(ATTENTION_KINDS)}"
    slides = any(kind.startswith("sliding") for kind in c.attention_pattern)
    if slides and (c.window is None or c.window < 1):
        yield f"window ({c.window}) must be at least 1 where attention_pattern has a sliding kind"
    if c.window is not None and not slides:
        yield f"window ({c.window}) needs a sliding kind in attention_pattern"
    if c.qk_norm_after_rope and not c.qk_norm:
        yield "qk_norm_after_rope (true) needs qk_norm"
    if c.rope_theta <= 0:
        yield f"rope_theta ({c.rope_theta}) must be above 0"
    if c.rope_scaling is not None:
        yield from rope_problems(c.rope_scaling, c.rope_theta)


def _ffn_problems(c: ModelConfig) -> Iterator[str]:
    if not c.ffn_pattern:
        yield "ffn_pattern must not be empty"
    for kind in c.ffn_pattern:
        if kind not in FFN_KINDS:
            yield f"ffn_pattern ({kind!r}) must be one of {', '.join(FFN_KINDS)}"
    if "dense" in c.ffn_pattern and c.intermediate_size < 1:
        yield f"intermediate_size ({c.intermediate_size}) must be at least 1"
    if "moe" in c.ffn_pattern:
        for name in ("num_experts", "experts_per_token", "moe_intermediate_size"):
            if getattr(c, name) < 1:
                yield f"{name} ({getattr(c, name)}) must be at least 1 where ffn_pattern has 'moe'"
        if c.experts_per_token > c.num_experts:
            yield f"experts_per_token ({c.experts_per_token}) must not exceed num_experts ({c.num_experts})"
    if c.router_logits_cap is not None and c.router_logits_cap <= 0:
        yield f"router_logits_cap ({c.router_logits_cap}) must be above 0, or null"
