"""Rotary positions (RoPE): the frequencies of each kind of scaling, and the rotation.

Shapes: S tokens per sequence, D head_size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.rope import DEFAULTS, attention_factor


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return RoPE's angle per position, float32 [D/2] (arXiv:2104.09864, eq. 15), with the config's scaling."""
    half = torch.arange(0, config.head_size, 2, dtype=torch.float64)
    freq: Tensor = config.rope_theta ** -(half / config.head_size)
    scaling = config.rope_scaling or {}
    match scaling.get("rope_type"):
        case "linear":
            freq = freq / scaling["factor"]
        case "llama3":  # low frequencies are divided by `factor`, high ones kept, and those in between interpolated
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)
            freq = _blended(freq, scaling["factor"], ((turns - low) / (high - low)).clamp(0, 1))
        case "yarn":
            freq = _blended(freq, scaling["factor"], _yarn_kept(config))
    return freq.float()


def _blended(freq: Tensor, factor: float, keep: Tensor) -> Tensor:
    """Return `freq` where `keep` is 1, `freq` divided by `factor` where it is 0, and a mean in between."""
    return freq * keep + freq / factor * (1 - keep)


def _yarn_kept(config: ModelConfig) -> Tensor:
    """Return how much of each frequency YaRN keeps (arXiv:2309.00071, section 3.2).

    It keeps those that turn more than beta_fast times within the original positions, and none of those that turn fewer
    than beta_slow times. In between it interpolates by the index of the frequency, as transformers does, and not by
    the number of turns, as in the paper.
    """
    assert config.rope_scaling is not None
    scaling = DEFAULTS["yarn"] | config.rope_scaling

    def index(turns: float) -> float:
        """Return the index of the frequency that turns so many times."""
        length = scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return config.head_size * math.log(length) / (2 * math.log(config.rope_theta))

    first, last = index(scaling["beta_fast"]), index(scaling["beta_slow"])
    if scaling["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_size - 1)
    width = last - first or 0.001
    return 1 - ((torch.arange(config.head_size // 2, dtype=torch.float64) - first) / width).clamp(0, 1)


def rotary(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin of RoPE's angles for `positions` [S], each [S, D/2], times the scaling's attention factor."""
    angles = positions[:, None].float() * inverse_frequencies(config).to(positions.device)
    factor = attention_factor(config.rope_scaling)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [..., S, D], which pairs element i with element i + D/2 (GPT-NeoX order)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
