"""The comparison of two engines' predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trtllm_pt.errors import UsageError
from trtllm_pt.evaluation.compare import check_same_tokens, compare
from trtllm_pt.evaluation.evaluate import Predictions, divergence
from trtllm_pt.text.documents import Text


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
    found = compare(ours, other, np.array([0.5, 1.0]))
    assert found["kl_divergence"] == 0.75
    bits = 0.01 / math.log(2) / 4
    assert found["bits_per_byte"] == pytest.approx(bits, rel=0.25)
    assert found["bits_per_byte_low"] < bits < found["bits_per_byte_high"]
    assert found["bits_per_byte_high"] - found["bits_per_byte_low"] < bits
    assert found["top1_agreement"] == 0.9
    back = compare(other, ours, np.zeros(2))
    assert back["bits_per_byte"] == -found["bits_per_byte"]


def test_equal_engines_do_not_differ() -> None:
    one = predictions(np.linspace(-3, -1, 200), np.zeros(200))
    assert compare(one, one, np.zeros(200)) == {
        "bits_per_byte": 0.0,
        "bits_per_byte_low": 0.0,
        "bits_per_byte_high": 0.0,
        "kl_divergence": 0.0,
        "top1_agreement": 1.0,
    }


def test_other_tokens_are_refused() -> None:
    one, other = Text("a", (1, 2, 3), 3), Text("a", (1, 2, 4), 3)
    check_same_tokens([one], [one])
    for others in ([other], [], [one, one]):
        with pytest.raises(UsageError, match="another tokenizer"):
            check_same_tokens([one], others)


def test_divergence_by_hand() -> None:
    """Of (1/2, 1/4, 1/4) from (1/4, 1/4, 1/2), of equals, and of what has no probability; logits have any offset."""
    true = np.log([[2, 1, 1], [1, 2, 5], [1, 1, 1e-300]]) + [[3.0], [0.0], [-7.0]]
    other = np.log([[1, 1, 2], [1, 2, 5], [3, 1, 1]]) + [[0.0], [100.0], [0.0]]
    true[2, 2] = -np.inf
    by_hand = [
        0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5),
        0.0,
        0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.2),
    ]
    np.testing.assert_allclose(divergence(true, other), by_hand, rtol=1e-12, atol=1e-12)
