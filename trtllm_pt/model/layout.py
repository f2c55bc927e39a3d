"""Which tracks, heads, FFN rows and vocabulary rows each rank holds. No other module computes this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig


@dataclass(frozen=True, slots=True)
class Span:
    """The rows from `start` up to but excluding `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The part of a model that one rank holds. Spans of heads, KV heads and FFN rows apply to each of its tracks."""

    rank: int
    ranks: int
    tracks: Span
    heads: Span
    kv_heads: Span
    ffn: Span
    experts_ffn: Span
    vocab: Span  # rows of the padded vocabulary


def padded_vocab_size(config: ModelConfig, ranks: int) -> int:
    """Return the vocabulary size rounded up to a multiple of `ranks`. The padding's logits are -inf when sampling."""
    return -(-config.vocab_size // ranks) * ranks


def rank_layout(config: ModelConfig, ranks: int, rank: int = 0) -> RankLayout:
    """Return what rank `rank` of `ranks` holds. Raises UsageError if the model cannot be divided over `ranks`."""
    if ranks < 1:
        raise UsageError(f"ranks ({ranks}) must be at least 1")
    if not 0 <= rank < ranks:
        raise UsageError(f"rank ({rank}) must be between 0 and ranks - 1 ({ranks - 1})")
    vocab = _part(padded_vocab_size(config, ranks), ranks, rank)
    if config.schedule in TRACKED:
        if config.tracks % ranks:
            fits = ", ".join(str(g) for g in range(1, config.tracks + 1) if config.tracks % g == 0)
            raise UsageError(f"ranks ({ranks}) must divide tracks ({config.tracks}); this model runs on {fits} ranks")
        return RankLayout(
            rank=rank,
            ranks=ranks,
            tracks=_part(config.tracks, ranks, rank),
            heads=Span(0, config.num_heads),
            kv_heads=Span(0, config.num_kv_heads),
            ffn=Span(0, config.intermediate_size),
            experts_ffn=Span(0, config.moe_intermediate_size),
            vocab=vocab,
        )
    _check_split(config, ranks)
    return RankLayout(
        rank=rank,
        ranks=ranks,
        tracks=Span(0, 1),
        heads=_part(config.num_heads, ranks, rank),
        kv_heads=_kv_heads(config, ranks, rank),
        ffn=_part(config.intermediate_size, ranks, rank),
        experts_ffn=_part(config.moe_intermediate_size, ranks, rank),
        vocab=vocab,
    )


def over_tracks(dense: ModelConfig, tracks: int, **schedule: Any) -> ModelConfig:
    """Return the model whose tracks are the parts of a dense model on `tracks` ranks, as spd and desync need it.

    schedule: the fields of ModelConfig that change, `schedule` among them.
    Raises UsageError if the model cannot be divided so.
    """
    part = rank_layout(dense, tracks)
    return dense.replace(
        tracks=tracks,
        num_heads=len(part.heads),
        num_kv_heads=len(part.kv_heads),
        intermediate_size=len(part.ffn),
        moe_intermediate_size=len(part.experts_ffn),
        **schedule,
    )


def _part(size: int, ranks: int, rank: int) -> Span:
    return Span(size * rank // ranks, size * (rank + 1) // ranks)


def _kv_heads(config: ModelConfig, ranks: int, rank: int) -> Span:
    """Return a rank's KV heads. If there are fewer KV heads than ranks, several ranks hold the same one."""
    if config.num_kv_heads >= ranks:
        return _part(config.num_kv_heads, ranks, rank)
    head = rank * config.num_kv_heads // ranks
    return Span(head, head + 1)


def _check_split(config: ModelConfig, ranks: int) -> None:
    for name in ("num_heads", "intermediate_size", "moe_intermediate_size"):
        if getattr(config, name) % ranks:
            raise UsageError(
                f"ranks ({ranks}) must divide {name} ({getattr(config, name)}) for schedule {config.schedule!r}"
            )
    if config.num_kv_heads % ranks and ranks % config.num_kv_heads:
        raise UsageError(f"ranks ({ranks}) must divide num_kv_heads ({config.num_kv_heads}), or be divided by it")
    if config.residual_norm and ranks > 1:
        raise UsageError(
            f"ranks ({ranks}) must be 1 for residual_norm (true) with schedule {config.schedule!r}: the norm needs a "
            "sub-layer's whole output, and each rank has only a part of it"
        )
