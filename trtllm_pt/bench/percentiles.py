"""Many samples in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NAMES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


def percentiles(samples: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """p50, p90, p95, p99, minimum, maximum and average of `samples` times `scale`, as trtllm-bench names them.

    Percentiles lie between neighbours on a straight line (numpy's default). Zeros where there is no sample.
    """
    values = np.asarray(samples or [0.0], float) * scale
    found = {name: float(np.percentile(values, rank)) for name, rank in NAMES.items()}
    return found | {
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "average": float(values.mean()),
    }


def median(samples: Sequence[float]) -> float:
    return float(np.median(np.asarray(samples, float)))


def ratios(ours: Sequence[float], baseline: Sequence[float]) -> Mapping[str, float]:
    """Sample by sample, ours over the baseline's of the same round: the median and the spread of the pairs."""
    pairs = np.asarray(ours, float) / np.asarray(baseline, float)
    low, middle, high = np.percentile(pairs, (10, 50, 90))
    return {
        "median": float(middle),
        "p10": float(low),
        "p90": float(high),
        "minimum": float(pairs.min()),
        "maximum": float(pairs.max()),
    }
