"""Sample tokens from logits, on rank 0. The result of a row depends only on that row and its sequence, bit for bit.

The order is: log-probs of the raw logits; logit bias; repetition, frequency and presence penalties; forbidden tokens
(bad words, end tokens before min_tokens, and what the guide does not allow); temperature; top_k; top_p; min_p; one draw
by (seed, position).
Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt

from trtllm_pt.requests.messages import SamplingParams, TokenScore
from trtllm_pt.requests.sequence import Sequence

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32] | Floats  # float64 after biases, penalties or forbidden tokens

BLOCK = 64  # top_k first compares the largest logits of blocks of this size, so that it need not sort all logits
_WORD = (1 << 64) - 1
BINS, BINS_PER_UNIT = 1024, 8  # top_p first sorts log-weights into bins, so that it need not sort those below its cut


# One entry per row: the tokens; the scores, or None if not requested; the errors that end a request, or None.
Sampled = tuple[list[int], list[TokenScore | None], list[str | None]]
# Computes log-probs and likeliest tokens from raw logits, as `score_rows` does.
Score = Callable[[npt.NDArray[np.float32], SequenceOf[int], int], list[TokenScore]]


def score_rows(logits: npt.NDArray[np.float32], targets: SequenceOf[int], top: int) -> list[TokenScore]:
    """Return the log-prob of each row's target and its `top` likeliest tokens, in float64. logits: [R, V]."""
    return [
        _score(row.astype(np.float64) - row.max(), target, top) for row, target in zip(logits, targets, strict=True)
    ]


def _score(x: Floats, token: int, top: int) -> TokenScore:
    """Return the log-prob of a token and the `top` likeliest tokens, from logits x [V] of which the largest is 0."""
    logs = x - np.log(np.exp(x).sum())
    best = largest(logs, min(top, len(logs))).tolist() if top else []
    return TokenScore(float(logs[token]), tuple((one, float(logs[one])) for one in best if logs[one] > -math.inf))


def sample(logits: npt.NDArray[np.float32], sequences: SequenceOf[Sequence], score: Score = score_rows) -> Sampled:
    """Return the next token of each sequence. logits: [R, V], without the vocabulary's padding.

    `sequences` is empty for a step whose logits are not used. score: the engine's own way to compute raw log-probs.
    """
    scores: list[TokenScore | None] = [None] * len(sequences)
    errors: list[str | None] = [None] * len(sequences)
    if not sequences:
        return [], scores, errors
    scored = []  # the rows whose raw logits are scored, together
    tokens = logits.argmax(axis=1).tolist()  # first index on ties, and the index of a NaN if there is one
    for i, sequence in enumerate(sequences):
        if not sequence.plain and (sequence.sampling.temperature or not is_untouched(sequence)):
            tokens[i] = pick(logits[i], tokens[i], sequence)
        value = logits.item(i, tokens[i])
        if tokens[i] < 0 or value == -math.inf:
            errors[i] = _why_none_is_left(sequence)
        elif value != value:
            errors[i] = "the logits are not numbers (NaN)"
        elif not sequence.plain and (sequence.sampling.log_probs or sequence.wants_logits):
            if sequence.sampling.processed_log_probs:
                scores[i] = processed_score(logits[i], tokens[i], sequence)
            else:
                scored.append(i)
    if scored:
        for i, raw in zip(scored, _raw_scores(logits, tokens, sequences, scored, score), strict=True):
            scores[i] = raw
    for i, sequence in enumerate(sequences):
        if not sequence.plain and sequence.wants_logits and (found := scores[i]) is not None:
            scores[i] = found._replace(logits=logits[i].tobytes())
    return tokens, scores, errors


def _why_none_is_left(sequence: Sequence) -> str:
    if sequence.constraint is not None and (error := sequence.constraint.error):
        return error
    return "no token is left to choose: bad_words, stop_words, min_tokens and guide forbid every one"


def _raw_scores(
    logits: npt.NDArray[np.float32],
    tokens: SequenceOf[int],
    sequences: SequenceOf[Sequence],
    rows: SequenceOf[int],
    score: Score,
) -> Iterator[TokenScore]:
    tops = [sequences[row].sampling.top_log_probs for row in rows]
    some = logits if len(rows) == len(logits) else logits[rows]
    found = score(some, [tokens[row] for row in rows], max(tops))
    return (TokenScore(one.log_prob, one.top[:top]) for one, top in zip(found, tops, strict=True))


def is_untouched(sequence: Sequence) -> bool:
    """Return whether neither biases, penalties nor forbidden tokens can change the sequence's logits."""
    p = sequence.sampling
    unpenalised = p.repetition_penalty == 1 and p.presence_penalty == 0 and p.frequency_penalty == 0
    return unpenalised and not p.logit_bias and not p.bad_words and may_end(sequence) and sequence.constraint is None


def may_end(sequence: Sequence) -> bool:
    """Return whether min_tokens no longer forbids an end token or the last token of a stop word."""
    p = sequence.sampling
    return p.min_tokens == 0 or sequence.num_output + 1 >= p.min_tokens + max((1, *map(len, p.stop_words)))


def pick(x: Logits, best: int, sequence: Sequence) -> int:
    """Return the next token of a sequence, or -1 if every token is forbidden. x: logits [V], the largest at `best`."""
    if math.isnan(x[best]):
        return best
    if not is_untouched(sequence):
        x = touched(x, sequence)
        best = int(x.argmax())
    p, top = sequence.sampling, float(x[best])
    if top == -math.inf:
        return -1
    if p.temperature == 0 or top == math.inf:
        return best
    u = uniform(p.seed, sequence.known)
    if sequence.constraint is not None:  # only what it allows: numpy takes long for the exponential of -inf
        allowed = (x > -math.inf).nonzero()[0]
        return int(allowed[draw(*keep(x[allowed], top, p), u)])
    return draw(*keep(x, top, p), u)


def touched(x: Logits, sequence: Sequence) -> Floats:
    """Return logits x [V] after biases and penalties, with -inf for forbidden tokens, in float64."""
    x = x.astype(np.float64)
    for token, bias in sequence.sampling.logit_bias:
        x[token] += bias
    penalise(x, sequence)
    for token in forbidden(sequence):
        x[token] = -np.inf
    if sequence.constraint is not None:
        x[sequence.constraint.forbidden()] = -np.inf
    return x


def processed_score(x: Logits, token: int, sequence: Sequence) -> TokenScore:
    """Return the score of a sampled token after biases, penalties, forbidden tokens and temperature. x: logits [V]."""
    p = sequence.sampling
    x = touched(x, sequence)
    return _score(log_weights(x, float(x.max()), p.temperature or 1.0), token, p.top_log_probs)


def penalise(x: Floats, sequence: Sequence) -> None:
    """Apply the penalties to logits x [V], in place.

    The repetition penalty divides positive logits and multiplies negative ones, for tokens of prompt and output (Keskar
    et al. 2019, arXiv:1909.05858). Then the frequency penalty times a token's count and the presence penalty are
    subtracted, for tokens of the output (as in OpenAI's API).
    """
    p = sequence.sampling
    if p.repetition_penalty != 1:
        seen = np.unique(sequence.tokens)
        x[seen] = np.where(x[seen] > 0, x[seen] / p.repetition_penalty, x[seen] * p.repetition_penalty)
    if p.frequency_penalty or p.presence_penalty:
        seen, counts = np.unique(sequence.output, return_counts=True)
        x[seen] -= p.frequency_penalty * counts + p.presence_penalty


def forbidden(sequence: Sequence) -> Iterator[int]:
    """Yield the tokens that would complete a bad word, or end the output before min_tokens."""
    p, count = sequence.sampling, sequence.num_output
    if count < p.min_tokens:
        yield from sequence.ends
    early = (word for word in p.stop_words if count + 1 - len(word) < p.min_tokens)
    for word in (*p.bad_words, *early):
        before = word[:-1]
        if len(before) <= count and tuple(sequence.output[count - len(before) :]) == before:
            yield word[-1]


def keep(x: Logits, top: float, p: SamplingParams) -> tuple[Int64s, Floats]:
    """Return the tokens that top_k, top_p and min_p keep, with their weights, which are not normalised.

    x: logits [V], of which `top` is the largest. top_k keeps the k largest, with the lower id on ties. top_p keeps the
    fewest of those, largest first, whose weights add up to at least the share top_p. min_p keeps those with at least
    min_p times the largest weight.
    """
    tokens = largest(x, p.top_k) if 0 < p.top_k < len(x) else None
    logs = log_weights(x if tokens is None else x[tokens], top, p.temperature)
    weights = np.exp(logs)
    if p.top_p < 1:
        whole = weights.sum()
        if tokens is None:
            tokens = largest_share(logs, weights, p.top_p)
            weights = weights[tokens]
        count = int(weights.cumsum().searchsorted(p.top_p * whole)) + 1
        tokens, weights = tokens[:count], weights[:count]
    if tokens is None:
        tokens = np.arange(len(x))
    if p.min_p > 0:
        likely = weights >= p.min_p * weights.max()
        tokens, weights = tokens[likely], weights[likely]
    return tokens, weights


def log_weights(x: Logits, top: float, temperature: float) -> Floats:
    """Return (x - top) / temperature in float64."""
    with np.errstate(over="ignore"):  # with a tiny temperature, all but the largest become -inf, which is intended
        return (x.astype(np.float64) - top) / temperature


def largest(x: Logits, k: int) -> Int64s:
    """Return the indices of the k largest values, largest first, the lower index first on ties."""
    heads = x[: len(x) // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=1)
    some = heads if len(heads) >= k else x
    bound = np.partition(some, len(some) - k)[len(some) - k]  # at least k values are >= bound
    candidates = (x >= bound).nonzero()[0]
    found: Int64s = candidates[(-x[candidates]).argsort(kind="stable")[:k]]
    return found


def largest_share(logs: Floats, weights: Floats, share: float) -> Int64s:
    """Return indices of weights, largest first, that together have at least `share` of the total, and few others.

    logs: the logarithms of the weights.
    """
    bins = (np.minimum(-logs, BINS / BINS_PER_UNIT - 1) * BINS_PER_UNIT).astype(np.int64)
    sums = np.bincount(bins, weights).cumsum()
    candidates = (bins <= sums.searchsorted(share * sums[-1])).nonzero()[0]
    found: Int64s = candidates[(-logs[candidates]).argsort(kind="stable")]
    return found


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends only on seed and position.

    It is Philox4x64-10 (Salmon et al. 2011) with key `seed` and counter `position` + 1, and equals NumPy's, whose
    generator takes longer to construct than this function takes.
    """
    a, b, c, d, key, other = position + 1, 0, 0, 0, seed, 0
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = second >> 64 ^ b ^ key, second & _WORD, first >> 64 ^ d ^ other, first & _WORD
        key, other = key + 0x9E3779B97F4A7C15 & _WORD, other + 0xBB67AE8584CAA73B & _WORD
    return (a >> 11) * 2.0**-53


def draw(tokens: Int64s, weights: Floats, u: float) -> int:
    """Return the token at which the cumulative weight exceeds u times the total. It never has weight 0."""
    sums = weights.cumsum()
    target = min(u * sums[-1], np.nextafter(sums[-1], 0))
    return int(tokens[sums.searchsorted(target, side="right")])
