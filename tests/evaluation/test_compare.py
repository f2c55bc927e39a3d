"""The comparison of two engines' predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trtllm_pt.errors import UsageError
from trtllm_pt.evaluation.compare import compare
from trtllm_pt.evaluation.evaluate import Predictions


def predictions(log_probs: np.ndarray, likeliest: np.ndarray, windows: int = 50) -> Predictions:
    tokens = np.arange(len(log_probs))
    return Predictions(log_probs, likeliest, tokens, [len(tokens) // windows] * windows, bytes=4 * len(tokens))


def test_summary() -> None:
    one = predictions(np.full(100, -math.log(2)), np.where(np.arange(100) % 4, np.arange(100), -1))
    found = one.summary()
    assert (found["tokens"], found["bytes"], found["top1_accuracy"]) == (100, 400, 0.75)
    assert found["perplexity"] == pytest.approx(2) and found["bits_per_byte"] == pytest.approx(0.25)


def test_a_known_difference_is_in_its_interval() -> None:
    """The second engine is better by 0.01 nats per token, with noise that is the same for both, and by window."""
    draw = np.random.default_rng(5)
    common, likeliest = draw.normal(-2, 1, 5000), np.arange(5000)
    ours = predictions(common - 0.01 + draw.normal(0, 0.05, 5000), likeliest)
    other = predictions(common, np.where(likeliest % 10, likeliest, -1))
    found = compare(ours, other)
    bits = 0.01 / math.log(2) / 4
    assert found["bits_per_byte"] == pytest.approx(bits, rel=0.25)
    assert found["bits_per_byte_low"] < bits < found["bits_per_byte_high"]
    assert found["bits_per_byte_high"] - found["bits_per_byte_low"] < bits
    assert found["top1_agreement"] == 0.9
    back = compare(other, ours)
    assert back["bits_per_byte"] == -found["bits_per_byte"]


def test_equal_engines_do_not_differ() -> None:
    one = predictions(np.linspace(-3, -1, 200), np.zeros(200))
    assert compare(one, one) == {
        "bits_per_byte": 0.0,
        "bits_per_byte_low": 0.0,
        "bits_per_byte_high": 0.0,
        "top1_agreement": 1.0,
    }


def test_other_tokens_are_refused() -> None:
    one, other = predictions(np.zeros(100), np.zeros(100)), predictions(np.zeros(200), np.zeros(200))
    with pytest.raises(UsageError, match="another tokenizer"):
        compare(one, other)
