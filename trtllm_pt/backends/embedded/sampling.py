"""From logits to tokens, on rank 0. A row's result depends on that row and its sequence only, to the bit.

The order: log-probs of the raw logits; repetition, frequency and presence penalties; forbidden tokens (bad words, ends
before min_tokens); temperature; top_k; top_p; min_p; one draw by (seed, position). R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt

from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.requests.sequence import Sequence

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32] | Floats  # float64 where something has changed them

BLOCK = 64  # logits of which the largest is looked at first, so that top_k need not look at all
_WORD = (1 << 64) - 1
BINS, BINS_PER_UNIT = 1024, 8  # log-weights by size, so that top_p need not sort those far below its cut


# One entry per row: tokens; log-probs, None: not asked for; why the row has no token, and so the request ends.
Sampled = tuple[list[int], list[float | None], list[str | None]]


def sample(logits: npt.NDArray[np.float32], sequences: SequenceOf[Sequence]) -> Sampled:
    """The next token of each sequence. logits [R, V], without padding. No sequences: no row was wanted."""
    log_probs: list[float | None] = [None] * len(sequences)
    errors: list[str | None] = [None] * len(sequences)
    if not sequences:
        return [], log_probs, errors
    tokens = logits.argmax(axis=1).tolist()  # first index on ties, and the index of a NaN if there is one
    for i, sequence in enumerate(sequences):
        if not sequence.plain and (sequence.sampling.temperature or not is_untouched(sequence)):
            tokens[i] = pick(logits[i], tokens[i], sequence)
        value = logits.item(i, tokens[i])
        if tokens[i] < 0 or value == -math.inf:
            errors[i] = "no token is left to choose: bad_words, stop_words and min_tokens forbid every one"
        elif value != value:
            errors[i] = "the logits are not numbers (NaN)"
        elif not sequence.plain and sequence.sampling.log_probs:
            log_probs[i] = log_prob(logits[i], tokens[i])
    return tokens, log_probs, errors


def is_untouched(sequence: Sequence) -> bool:
    """Nothing changes a logit."""
    p = sequence.sampling
    unpenalised = p.repetition_penalty == 1 and p.presence_penalty == 0 and p.frequency_penalty == 0
    return unpenalised and not p.bad_words and may_end(sequence)


def may_end(sequence: Sequence) -> bool:
    """Neither the end id nor the last token of a stop word can come too early any more."""
    p = sequence.sampling
    return p.min_tokens == 0 or sequence.num_output + 1 >= p.min_tokens + max((1, *map(len, p.stop_words)))


def pick(x: Logits, best: int, sequence: Sequence) -> int:
    """The next token of one sequence; -1: every token is forbidden. x [V]: its logits, the largest at `best`."""
    if math.isnan(x[best]):
        return best
    if not is_untouched(sequence):
        x = x.astype(np.float64)
        penalise(x, sequence)
        for token in forbidden(sequence):
            x[token] = -np.inf
        best = int(x.argmax())
    p, top = sequence.sampling, float(x[best])
    if top == -math.inf:
        return -1
    if p.temperature == 0 or top == math.inf:
        return best
    tokens, weights = keep(x, top, p)
    return draw(tokens, weights, uniform(p.seed, sequence.known))


def log_prob(row: npt.NDArray[np.float32], token: int) -> float:
    """log softmax(row)[token], in float64."""
    x = row.astype(np.float64)
    top = x.max()
    return float(x[token] - top - np.log(np.exp(x - top).sum()))


def penalise(x: Floats, sequence: Sequence) -> None:
    """Repetition (Keskar et al. 2019: a positive logit is divided, a negative one multiplied; prompt and output), then
    frequency times the count and presence once (OpenAI; output only). In place, x [V]."""
    p = sequence.sampling
    if p.repetition_penalty != 1:
        seen = np.unique(sequence.tokens)
        x[seen] = np.where(x[seen] > 0, x[seen] / p.repetition_penalty, x[seen] * p.repetition_penalty)
    if p.frequency_penalty or p.presence_penalty:
        seen, counts = np.unique(sequence.output, return_counts=True)
        x[seen] -= p.frequency_penalty * counts + p.presence_penalty


def forbidden(sequence: Sequence) -> Iterator[int]:
    """Tokens that would complete a bad word, or end the output before min_tokens."""
    p, count = sequence.sampling, sequence.num_output
    if sequence.end_id >= 0 and count < p.min_tokens:
        yield sequence.end_id
    early = (word for word in p.stop_words if count + 1 - len(word) < p.min_tokens)
    for word in (*p.bad_words, *early):
        before = word[:-1]
        if len(before) <= count and tuple(sequence.output[count - len(before) :]) == before:
            yield word[-1]


def keep(x: Logits, top: float, p: SamplingParams) -> tuple[Int64s, Floats]:
    """Tokens that top_k, top_p and min_p leave, with their weights (not normalised). x [V]: logits, the largest `top`.

    top_k takes the k largest (ties: the lower id); top_p the fewest of those, largest first, that hold the share top_p;
    min_p those with at least min_p times the largest weight.
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
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the largest to -inf, as it should
        return (x.astype(np.float64) - top) / temperature


def largest(x: Logits, k: int) -> Int64s:
    """Indices of the k largest values, largest first, the lower index first on ties."""
    heads = x[: len(x) // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=1)
    some = heads if len(heads) >= k else x
    bound = np.partition(some, len(some) - k)[len(some) - k]  # at least k values are not below it
    candidates = (x >= bound).nonzero()[0]
    found: Int64s = candidates[(-x[candidates]).argsort(kind="stable")[:k]]
    return found


def largest_share(logs: Floats, weights: Floats, share: float) -> Int64s:
    """Indices of weights that together hold `share` of all, and hardly more, largest first; logs: their logarithms."""
    bins = (np.minimum(-logs, BINS / BINS_PER_UNIT - 1) * BINS_PER_UNIT).astype(np.int64)
    sums = np.bincount(bins, weights).cumsum()
    candidates = (bins <= sums.searchsorted(share * sums[-1])).nonzero()[0]
    found: Int64s = candidates[(-logs[candidates]).argsort(kind="stable")]
    return found


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: Philox4x64-10 (Salmon et al. 2011), key `seed`, counter
    `position` + 1, as in numpy, whose generator takes longer to make than this."""
    a, b, c, d, key, other = position + 1, 0, 0, 0, seed, 0
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = second >> 64 ^ b ^ key, second & _WORD, first >> 64 ^ d ^ other, first & _WORD
        key, other = key + 0x9E3779B97F4A7C15 & _WORD, other + 0xBB67AE8584CAA73B & _WORD
    return (a >> 11) * 2.0**-53


def draw(tokens: Int64s, weights: Floats, u: float) -> int:
    """The token at which the cumulative weight passes u of the whole: never one of weight 0."""
    sums = weights.cumsum()
    target = min(u * sums[-1], np.nextafter(sums[-1], 0))
    return int(tokens[sums.searchsorted(target, side="right")])
