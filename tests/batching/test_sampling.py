"""Sampling against naive implementations, and its independence of the batch."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tests.backends.embedded.fake import sequence
from trtllm_pt.batching.sampling import keep, penalise, sample, uniform
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import check_sampling
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.requests.sequence import Sequence

VOCAB = 40
DRAWS = 8000


def row(seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, vocab).astype(np.float32)


def one(logits: np.ndarray, s: Sequence) -> int:
    [token], _, _ = sample(logits[None], [s])
    return token


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x.astype(np.float64) - x.max())
    return weights / weights.sum()


def frequencies(logits: np.ndarray, draws: int = DRAWS, **sampling: object) -> np.ndarray:
    """Over seeds: every request draws at the same position."""
    s = [sequence(seed=seed, **sampling) for seed in range(draws)]
    tokens, _, _ = sample(np.broadcast_to(logits, (draws, len(logits))), s)
    return np.bincount(tokens, minlength=len(logits)) / draws


def close(observed: np.ndarray, expected: np.ndarray, draws: int = DRAWS) -> bool:
    """Within five standard deviations everywhere: by chance off for fewer than one in 10^4 of such tests. Outcomes that
    are expected fewer than ten times count together, for a rare one's number is far from normal."""
    rare = expected * draws < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return bool(np.all(np.abs(observed - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-12))


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.zeros((2, 6), np.float32)
    logits[0, [2, 5]] = 1
    for second in (sequence(), sequence(presence_penalty=0.5)):
        tokens, _, _ = sample(logits, [sequence(), second])
        assert tokens == [2, 0]


def test_rows_that_were_not_wanted_are_ignored() -> None:
    assert sample(row()[None], []) == ([], [], [])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature(temperature: float) -> None:
    assert close(frequencies(row(), temperature=temperature), softmax(row() / temperature))


def test_a_tiny_temperature_is_greedy() -> None:
    assert one(row(), sequence(temperature=1e-300)) == row().argmax()


def naive_keep(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    p = softmax(logits)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    order = order[:top_k] if top_k else order
    whole, total, kept = sum(p[i] for i in order), 0.0, []
    for i in order:
        if total >= top_p * whole:
            break
        kept.append(i)
        total += p[i]
    result = np.zeros(len(p))
    for i in kept:
        if p[i] >= min_p * p[kept[0]]:
            result[i] = p[i]
    return result / result.sum()


@pytest.mark.parametrize("top_k", [0, 1, 5, 39, 40, 100])
@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.1, 1.0])
def test_the_kept_tokens(top_k: int, top_p: float, min_p: float) -> None:
    for seed in range(5):
        logits = row(seed)
        x = logits.astype(np.float64) - logits.max()
        tokens, weights = keep(x, 0.0, SamplingParams(temperature=1, top_k=top_k, top_p=top_p, min_p=min_p))
        result = np.zeros(VOCAB)
        result[tokens] = weights / weights.sum()
        np.testing.assert_allclose(result, naive_keep(logits, top_k, top_p, min_p), rtol=1e-12)


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
def test_top_p_of_a_large_vocabulary(top_p: float) -> None:
    logits = np.random.default_rng(1).normal(0, 0.3, 5000).astype(np.float32)
    x = logits.astype(np.float64) - logits.max()
    tokens, _ = keep(x, 0.0, SamplingParams(temperature=1, top_p=top_p))
    assert sorted(tokens) == np.flatnonzero(naive_keep(logits, 0, top_p, 0)).tolist()


def test_equal_logits_are_cut_by_index() -> None:
    tokens, _ = keep(np.zeros(6), 0.0, SamplingParams(temperature=1, top_k=2))
    assert tokens.tolist() == [0, 1]


def test_draws_follow_the_kept_tokens() -> None:
    observed = frequencies(row(), temperature=1.0, top_k=10, top_p=0.9, min_p=0.02)
    assert close(observed, naive_keep(row(), 10, 0.9, 0.02))


def test_draws_over_positions_follow_the_distribution() -> None:
    """One seed, many positions: what a long output does."""
    draws = np.array([uniform(123, position) for position in range(DRAWS)])
    assert draws.min() >= 0 and draws.max() < 1
    assert close(np.histogram(draws, 20, (0, 1))[0] / DRAWS, np.full(20, 0.05))
    neighbours = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(DRAWS)


def test_a_draw_is_pinned() -> None:
    """Seeds keep their meaning from version to version."""
    assert [uniform(0, 0), uniform(7, 100), uniform(2**64 - 1, 3)] == [
        0.011546754286331562,
        0.20719617945673485,
        0.10224385374061784,
    ]


def mixed(count: int) -> tuple[np.ndarray, list[Sequence]]:
    kinds: list[dict[str, object]] = [
        {},
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 7, "log_probs": True},
        {"temperature": 1.5, "top_p": 0.7},
        {"repetition_penalty": 1.4, "presence_penalty": 0.3, "log_probs": True},
        {"temperature": 1.0, "min_p": 0.05, "bad_words": ((3,), (5, 6)), "frequency_penalty": -0.5},
    ]
    rng = np.random.default_rng(9)
    logits = rng.normal(0, 2, (count, 1000)).astype(np.float32)
    sequences = [
        sequence(
            tuple(rng.integers(0, 900, 9).tolist()), tuple(rng.integers(0, 900, i % 7).tolist()), seed=i, **kinds[i % 6]
        )
        for i in range(count)
    ]
    return logits, sequences


def test_a_row_does_not_depend_on_the_batch() -> None:
    logits, sequences = mixed(60)
    tokens, log_probs, _ = sample(logits[:, :990], sequences)
    for i, s in enumerate(sequences):
        for apart in (logits[i : i + 1, :990], logits[i : i + 1, :990].copy()):
            assert sample(apart, [s]) == ([tokens[i]], [log_probs[i]], [None])
    backwards, backwards_log_probs, _ = sample(logits[::-1, :990].copy(), sequences[::-1])
    assert backwards[::-1] == tokens and backwards_log_probs[::-1] == log_probs


def test_seed_and_position_decide() -> None:
    flat = np.zeros(VOCAB, np.float32)
    same = [one(flat, sequence((1, 2), (3,), temperature=1.0, seed=4)) for _ in range(3)]
    assert len(set(same)) == 1
    assert one(flat, sequence((1, 2, 3), (), temperature=1.0, seed=4)) == same[0]  # the position counts, not the prompt
    assert len({one(flat, sequence(temperature=1.0, seed=seed)) for seed in range(20)}) > 8
    assert len({one(flat, sequence((1,) * n, temperature=1.0)) for n in range(1, 21)}) > 8


@pytest.mark.parametrize("repetition", [1.0, 1.5, 0.7])
@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 0.0), (0.6, 0.0), (0.0, -0.4), (0.5, 0.3)])
def test_penalties_against_a_naive_loop(repetition: float, presence: float, frequency: float) -> None:
    prompt, output = (1, 2, 2, 30), (2, 5, 5, 5, 7)
    expected = row().astype(np.float64)
    for token in range(VOCAB):
        if token in prompt + output:
            expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
        if token in output:
            expected[token] -= presence + frequency * output.count(token)
    s = sequence(prompt, output, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    got = row().astype(np.float64)
    penalise(got, s)
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert one(row(), s) == expected.argmax()


def test_logit_bias_is_added_before_the_penalties() -> None:
    logits = row()
    bias = {3: 4.5, 7: -100.0, 11: 0.25}
    biased = logits.astype(np.float64)
    for token, value in bias.items():
        biased[token] += value
    sampling = {"logit_bias": tuple(bias.items()), "temperature": 0.8}
    assert close(frequencies(logits, **sampling), softmax(biased / 0.8))
    few = np.array([4, 3, 1, 0], np.float32)
    for value, wanted in ((6.0, 0), (9.0, 3)):
        assert one(few, sequence((1,), (3,), logit_bias=((3, value),), repetition_penalty=2.0)) == wanted


def test_log_probs_are_of_the_raw_logits() -> None:
    s = sequence((1,), (int(row().argmax()),), repetition_penalty=3.0, temperature=0.5, log_probs=True)
    [token], [found], _ = sample(row()[None], [s])
    assert found is not None and found.top == ()
    assert found.log_prob == pytest.approx(math.log(softmax(row())[token]), abs=1e-6)
    _, found_if_not_asked, _ = sample(row()[None], [sequence()])
    assert found_if_not_asked == [None]
    [_], [sure], _ = sample(np.array([[1000, 0]], np.float32), [sequence(log_probs=True)])
    assert sure is not None and sure.log_prob == 0.0


def test_the_likeliest_tokens() -> None:
    """Each request gets as many as it asks for, from the raw logits, and the lower id first on ties."""
    logits = np.round(row(3)).astype(np.float32)
    want = np.argsort(-logits, kind="stable")
    asked = [sequence(log_probs=True, top_log_probs=top, temperature=1.0, seed=top) for top in (0, 3, 20)]
    _, found, _ = sample(np.stack([logits] * 3), asked)
    for top, one in zip((0, 3, 20), found, strict=True):
        assert one is not None and [token for token, _ in one.top] == want[:top].tolist()
        np.testing.assert_allclose([p for _, p in one.top], np.log(softmax(logits))[want[:top]], atol=1e-6)


def test_processed_log_probs_are_those_that_are_drawn_from() -> None:
    s = sequence(
        (1,),
        (4, 7),
        temperature=0.5,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        bad_words=((2,),),
        log_probs=True,
        processed_log_probs=True,
        top_log_probs=20,
    )
    x = row().astype(np.float64)
    penalise(x, s)
    x[2] = -np.inf
    want = np.log(softmax(x / 0.5), where=x > -np.inf, out=np.full(VOCAB, -np.inf))
    [token], [found], _ = sample(row()[None], [s])
    assert found is not None and found.log_prob == pytest.approx(want[token], abs=1e-12)
    order = np.argsort(-want, kind="stable")[:20]
    assert [one for one, _ in found.top] == order.tolist()
    np.testing.assert_allclose([p for _, p in found.top], want[order], atol=1e-12)


def test_bad_words() -> None:
    logits = -np.arange(VOCAB, dtype=np.float32)  # 0 is best, then 1, 2, …
    for output, words, token in (
        ((), ((0,),), 1),
        ((5,), ((5, 0),), 1),  # the word's beginning is there: its last token is forbidden
        ((6,), ((5, 0),), 0),
        ((4, 5), ((4, 5, 0), (1,)), 2),
        ((5,), ((4, 5, 0),), 0),  # the prompt does not count
    ):
        for temperature in (0.0, 0.01):
            assert one(logits, sequence((4,), output, bad_words=words, temperature=temperature)) == token


def test_min_tokens() -> None:
    logits = -np.arange(VOCAB, dtype=np.float32)
    assert one(logits, sequence((1,), (7,), end_id=0, min_tokens=2)) == 1
    assert one(logits, sequence((1,), (7, 7), end_id=0, min_tokens=2)) == 0
    assert one(logits, sequence((1,), (7,), stop_token_ids=(9, 0), min_tokens=2)) == 1
    assert one(logits, sequence((1,), (7, 7), stop_token_ids=(9, 0), min_tokens=2)) == 0
    for output, token in (((7,), 1), ((7, 7), 1), ((7, 7, 7), 0)):  # (7, 0) leaves one token fewer than the output has
        for temperature in (0.0, 0.01):
            s = sequence((1,), output, stop_words=((7, 0),), min_tokens=2, temperature=temperature)
            assert one(logits, s) == token


def test_a_forbidden_token_is_never_drawn() -> None:
    words = tuple((token,) for token in range(VOCAB - 2))
    observed = frequencies(row(), 500, temperature=50.0, bad_words=words)
    assert observed[:-2].sum() == 0 and observed[-2:].min() > 0


def test_rows_without_an_answer() -> None:
    everything = tuple((token,) for token in range(VOCAB))
    hole = row()
    hole[5] = np.nan
    nothing = np.full(VOCAB, -np.inf, np.float32)
    for logits, sampling, words in (
        (row(), {"bad_words": everything}, "no token is left to choose"),
        (nothing, {}, "no token is left"),
        (hole, {}, "NaN"),
        (hole, {"temperature": 1.0, "log_probs": True}, "NaN"),
    ):
        tokens, log_probs, errors = sample(np.stack([logits, row()]), [sequence(**sampling), sequence()])  # type: ignore[arg-type]
        assert words in str(errors[0]) and log_probs[0] is None
        assert errors[1] is None and tokens[1] == row().argmax()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_tokens", 0, "a whole number at least 1"),
        ("max_tokens", 1.5, "a whole number at least 1"),
        ("max_tokens", True, "a whole number at least 1"),
        ("temperature", -0.1, "a number at least 0 (0: greedy)"),
        ("temperature", math.nan, "a number at least 0 (0: greedy)"),
        ("temperature", math.inf, "a number at least 0 (0: greedy)"),
        ("temperature", "1", "a number at least 0 (0: greedy)"),
        ("top_k", -1, "a whole number at least 0 (0: no limit)"),
        ("top_p", 0.0, "a number above 0 and at most 1"),
        ("top_p", 1.1, "a number above 0 and at most 1"),
        ("min_p", -0.1, "a number between 0 and 1"),
        ("min_p", 2, "a number between 0 and 1"),
        ("repetition_penalty", 0.0, "a number above 0 (1: none)"),
        ("presence_penalty", math.inf, "a finite number"),
        ("frequency_penalty", math.nan, "a finite number"),
        ("seed", -1, "a whole number between 0 and 2**64 - 1"),
        ("seed", 2**64, "a whole number between 0 and 2**64 - 1"),
        ("min_tokens", -1, "a whole number at least 0"),
        ("log_probs", 1, "true or false"),
        ("end_id", 40, "a token id between 0 and 39, or -1 for none"),
        ("end_id", -2, "a token id between 0 and 39, or -1 for none"),
    ],
)
def test_values_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{field} ({value!r}) must be {words}")):
        check_sampling(SamplingParams(**{field: value}), VOCAB)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["stop_words", "bad_words"])
def test_words_refused(field: str) -> None:
    for words, message in (
        ((1, 2), f"{field}[0] (1) must be a sequence of at least one token id"),
        (((1,), ()), f"{field}[1] (()) must be a sequence of at least one token id"),
        (((1, 40),), f"{field}[0] ([1, 40]) must have token ids between 0 and 39"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            check_sampling(SamplingParams(**{field: words}), VOCAB)  # type: ignore[arg-type]


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_tokens \(9\) must not exceed max_tokens \(8\)"):
        check_sampling(SamplingParams(max_tokens=8, min_tokens=9), VOCAB)


def test_good_values() -> None:
    check_sampling(SamplingParams(), VOCAB)
    check_sampling(SamplingParams(temperature=1, top_p=1, seed=2**64 - 1, end_id=-1, stop_words=((1, 2),)), VOCAB)
