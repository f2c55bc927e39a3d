"""Two numbers for a collective: a latency and a bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fit:
    """seconds = latency + bytes / bandwidth; `error`: the mean of |fitted / measured - 1|."""

    latency: float  # seconds
    bandwidth: float  # bytes per second; infinite where size costs nothing
    error: float


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """Least squares of the relative errors over (bytes, seconds): sizes lie over orders of magnitude.

    Neither term is negative: where one would be, the other explains all.
    """
    sizes, seconds = np.array(points, float).T
    columns = np.stack([1 / seconds, sizes / seconds], axis=1)
    terms, *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    for negative in np.flatnonzero(terms < 0):
        other = columns[:, 1 - negative]
        terms[negative], terms[1 - negative] = 0.0, other.sum() / (other @ other)
        break
    latency, per_byte = (float(term) for term in terms)
    error = float(np.abs((latency + sizes * per_byte) / seconds - 1).mean())
    return Fit(latency, 1 / per_byte if per_byte else float("inf"), error)
