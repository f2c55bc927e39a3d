"""The ways to scale RoPE to longer texts: the keys of `rope_scaling`, what they may be, and the factor of attention.

`network/rope.py` has the frequencies that follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

# The keys of each type that must be there, and those that may be left out, with their defaults.
REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    # Dynamic scaling begins beyond max_position_embeddings, where no engine goes. Up to there it changes nothing.
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    # attention_factor: None stands for yarn_magnitude(factor)
    "yarn": {"attention_factor": None, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
}


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's scale of queries and keys for positions stretched by `factor` (arXiv:2309.00071, section 3.4).

    weight: the scale's own factor, `mscale` in DeepSeek's configurations.
    """
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def attention_factor(scaling: dict[str, Any] | None) -> float:
    """Return the factor of both queries and keys, and so of cos and sin, that comes with a scaling."""
    if scaling is None or scaling["rope_type"] != "yarn":
        return 1.0
    given: float | None = scaling.get("attention_factor")
    return yarn_magnitude(scaling["factor"]) if given is None else given


def rope_problems(scaling: dict[str, Any], rope_theta: float) -> Iterator[str]:
    """Yield what is wrong with a `rope_scaling`, one sentence each."""
    kind = str(scaling.get("rope_type"))
    if kind not in REQUIRED:
        yield f"rope_scaling has rope_type {kind!r}; supported: {', '.join(REQUIRED)}"
        return
    yield from _wrong_keys(scaling, kind)
    for key in sorted(set(scaling) - {"rope_type", "truncate"}):
        value = scaling[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            yield f"rope_scaling {key} ({value!r}) must be a number above 0"
    if not isinstance(scaling.get("truncate", True), bool):
        yield f"rope_scaling truncate ({scaling['truncate']!r}) must be true or false"
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        yield (
            f"rope_scaling low_freq_factor ({scaling['low_freq_factor']}) must be below "
            f"high_freq_factor ({scaling['high_freq_factor']})"
        )
    if kind == "yarn":
        fast, slow = (scaling.get(key, DEFAULTS["yarn"][key]) for key in ("beta_fast", "beta_slow"))
        if fast < slow:
            yield f"rope_scaling beta_fast ({fast}) must be at least beta_slow ({slow})"
        if rope_theta <= 1:
            yield f"rope_theta ({rope_theta}) must be above 1 for rope_scaling of type 'yarn'"


def _wrong_keys(scaling: dict[str, Any], kind: str) -> Iterator[str]:
    wanted, optional = {"rope_type", *REQUIRED[kind]}, set(DEFAULTS.get(kind, ()))
    found = set(scaling)
    if not wanted <= found <= wanted | optional:
        more = f", and may have {sorted(optional)}" if optional else ""
        yield f"rope_scaling of type {kind!r} has keys {sorted(found)}; it must have {sorted(wanted)}{more}"
