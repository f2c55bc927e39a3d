"""Compare the predictions of two engines for the same tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trtllm_pt.errors import UsageError
from trtllm_pt.evaluation.evaluate import Floats, Predictions
from trtllm_pt.text.documents import Text

_SAMPLES = 2000
_SEED = 0


def check_same_tokens(texts: Sequence[Text], others: Sequence[Text]) -> None:
    """Raise UsageError if two engines do not see the same tokens in the same texts."""
    if [text.tokens for text in texts] != [text.tokens for text in others]:
        raise UsageError("--against has another tokenizer: only engines that predict the same tokens can be compared")


def compare(ours: Predictions, other: Predictions, divergences: Floats) -> Mapping[str, float]:
    """Return how much more the first engine needs than the second, and how often both would choose the same token.

    `bits_per_byte_low` and `.._high` are the bounds of the 95 % interval of a bootstrap over the windows (Efron 1979,
    percentile method), whose differences are paired. divergences: of our prediction of each token from the other's.
    Both predict the same tokens.
    """
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
        "kl_divergence": float(divergences.mean()),
        "top1_agreement": float((ours.likeliest == other.likeliest).mean()),
    }
