"""Compare the predictions of two engines for the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from trtllm_pt.errors import UsageError
from trtllm_pt.evaluation.evaluate import Predictions

_SAMPLES = 2000
_SEED = 0


def compare(ours: Predictions, other: Predictions) -> Mapping[str, float]:
    """Return how much more the first engine needs than the second, and how often both would choose the same token.

    `bits_per_byte_low` and `.._high` are the bounds of the 95 % interval of a bootstrap over the windows (Efron 1979,
    percentile method), whose differences are paired. Raises UsageError if the engines predict different tokens.
    """
    if not np.array_equal(ours.tokens, other.tokens):
        raise UsageError("--against has another tokenizer: only engines that predict the same tokens can be compared")
    more = other.log_probs - ours.log_probs  # nats that we need more, for each token
    ends = np.cumsum(ours.window_sizes)
    each = np.diff(np.concatenate(([0.0], more.cumsum()[ends - 1])))
    sizes = np.array(ours.window_sizes, float)
    drawn = np.random.default_rng(_SEED).integers(len(each), size=(_SAMPLES, len(each)))
    per_token = each[drawn].sum(1) / sizes[drawn].sum(1)
    bits = len(ours.tokens) / ours.bytes / math.log(2)  # bits per byte for one nat per token
    low, high = np.percentile(per_token * bits, (2.5, 97.5))
    return {
        "bits_per_byte": float(more.mean()) * bits,
        "bits_per_byte_low": float(low),
        "bits_per_byte_high": float(high),
        "top1_agreement": float((ours.likeliest == other.likeliest).mean()),
    }
