"""A model under every schedule, with equally many parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig
from trtllm_pt.model.cost import parameters
from trtllm_pt.model.layout import over_tracks

_DEPTHS = (1, 2, 4, 8)


def variants(config: ModelConfig, tracks: int) -> Iterator[ModelConfig]:
    """Yield `config` itself, then the other variants: tp, parallel, ladder, spd, desync, dtp, and pt for every D.

    Schedules that need a division which this model does not allow are left out.
    """
    yield config
    plain, narrow = _makers(config, tracks)
    wanted = [*_plain(plain, tracks), *_narrow(narrow)]
    for variant in wanted:
        if variant != config:
            yield variant


def _makers(config: ModelConfig, tracks: int) -> tuple[ModelConfig | None, ModelConfig | None]:
    """Return the dense model and the PT model of this size. One of them is `config` or differs in its schedule only."""
    if config.schedule == "pt":
        return _dense_twin(config), config
    plain = config if config.schedule not in TRACKED else _joined(config)
    return plain, _pt_twin(plain.replace(schedule="tp", sync_every=None, delay=None, dropped_layers=()), tracks)


def _plain(dense: ModelConfig | None, tracks: int) -> Iterator[ModelConfig]:
    if dense is None:
        return
    dense = dense.replace(schedule="tp", sync_every=None, delay=None, dropped_layers=())
    yield dense
    if not dense.output_bias:
        yield dense.replace(schedule="parallel")
        yield dense.replace(schedule="ladder")
    layers = dense.num_layers
    try:
        yield over_tracks(dense, tracks, schedule="spd", dropped_layers=tuple(range(layers)))
    except UsageError:
        return
    for every in (1, 2, 4):
        if every <= layers and not dense.output_bias:
            yield over_tracks(dense, tracks, schedule="desync", sync_every=every)
    if not dense.output_bias:
        for delay in (1, 2):
            yield over_tracks(dense, tracks, schedule="dtp", delay=delay)


def _narrow(pt: ModelConfig | None) -> Iterator[ModelConfig]:
    if pt is not None:
        for depth in _DEPTHS:
            if depth <= pt.num_layers:
                yield pt.replace(block_depth=depth)


def _joined(split: ModelConfig) -> ModelConfig:
    """Return the dense model that was split."""
    return split.replace(
        tracks=1,
        schedule="tp",
        sync_every=None,
        delay=None,
        dropped_layers=(),
        num_heads=split.num_heads * split.tracks,
        num_kv_heads=split.num_kv_heads * split.tracks,
        intermediate_size=split.intermediate_size * split.tracks,
        moe_intermediate_size=split.moe_intermediate_size * split.tracks,
    )


def _pt_twin(dense: ModelConfig, tracks: int) -> ModelConfig | None:
    """Return the PT model. Its tracks have the dense width over sqrt(n), which keeps the usual shape of the FFN."""
    if dense.num_heads % tracks or dense.output_bias or tracks == 1:
        return None
    heads, kv_heads = dense.num_heads // tracks, max(1, dense.num_kv_heads // tracks)
    return resized(
        dense.replace(schedule="pt", block_depth=1, tracks=tracks, num_heads=heads, num_kv_heads=kv_heads),
        _rounded(dense.hidden_size / math.sqrt(tracks)),
        parameters(dense),
    )


def _dense_twin(pt: ModelConfig) -> ModelConfig | None:
    """Return the dense model of a PT model's size."""
    dense = pt.replace(
        schedule="tp",
        block_depth=None,
        tracks=1,
        combine="mean",
        dispatch_norm=False,
        combine_norm=False,
        num_heads=pt.num_heads * pt.tracks,
        num_kv_heads=pt.num_kv_heads * pt.tracks,
    )
    widest = _rounded(pt.hidden_size * math.sqrt(pt.tracks))
    # If embeddings are most of a model, a dense model of this width has no parameters left for an FFN.
    twins = (resized(dense, width, parameters(pt)) for width in range(widest, pt.hidden_size - 1, -_step(widest)))
    return next((twin for twin in twins if twin is not None), None)


def resized(config: ModelConfig, width: int, wanted: int) -> ModelConfig | None:
    """Return `config` with another width, and with an FFN that gives it `wanted` parameters.

    The parameters are linear in the FFN's width, so two values determine it. FFN widths are multiples of 8 or more.
    The result is None if almost no FFN would be left.
    """

    def at(scale: float) -> ModelConfig:
        return config.replace(
            hidden_size=width,
            intermediate_size=_multiple(config.intermediate_size * scale),
            moe_intermediate_size=_multiple(config.moe_intermediate_size * scale),
        )

    low, high = 1.0, 2.0
    per_scale = (parameters(at(high)) - parameters(at(low))) / (high - low)
    scale = low + (wanted - parameters(at(low))) / per_scale
    if scale <= 0:
        return None
    found = at(scale)
    rows = max(found.intermediate_size, found.moe_intermediate_size)
    return found if 4 * rows >= width // max(1, config.tracks) else None


def _multiple(rows: float) -> int:
    """Round an FFN width to a multiple of 8, 16 or 64."""
    step = 64 if rows >= 4096 else 16 if rows >= 512 else 8
    return max(step, round(rows / step) * step) if rows else 0


def _rounded(width: float) -> int:
    """Round a width to a multiple of `_step`."""
    return max(_step(width), round(width / _step(width)) * _step(width))


def _step(width: float) -> int:
    """Return the largest power of two that is at most an eighth of the width."""
    return 1 << max(1, math.floor(math.log2(width / 8)))
