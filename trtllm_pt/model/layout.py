"""n tracks on g ranks: which tracks, heads, FFN rows and vocabulary rows a rank holds. Nobody else works that out."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class RankLayout:
    """What rank `rank` of `ranks` holds. Head, KV head and FFN spans are inside each of its tracks."""

    rank: int
    ranks: int
    tracks: Span
    heads: Span
    kv_heads: Span
    ffn: Span
    experts_ffn: Span
    vocab: Span  # rows of the padded vocabulary


def padded_vocab_size(config: ModelConfig, ranks: int) -> int:
    """The vocabulary rounded up to a multiple of the ranks; the added logits are -inf before sampling."""
    return -(-config.vocab_size // ranks) * ranks


def rank_layout(config: ModelConfig, ranks: int, rank: int = 0) -> RankLayout:
    """Raises UsageError where the model cannot be divided over `ranks`."""
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


def _part(size: int, ranks: int, rank: int) -> Span:
    return Span(size * rank // ranks, size * (rank + 1) // ranks)


def _kv_heads(config: ModelConfig, ranks: int, rank: int) -> Span:
    """With fewer KV heads than ranks each is held by several."""
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
            f"residual_norm (true) norms a sub-layer's whole output, of which each of the ranks ({ranks}) has a part "
            f"with schedule {config.schedule!r}: such a model runs on 1 rank"
        )
