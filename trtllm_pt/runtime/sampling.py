"""From logits to tokens, on rank 0. A row's result depends on that row and its sequence only, to the bit.

The order: log-probs of the raw logits; repetition, frequency and presence penalties; forbidden tokens (bad words, ends
before min_tokens); temperature; top_k; top_p; min_p; one draw by (seed, position). R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_pt.errors import UsageError
from trtllm_pt.messages import SamplingParams
from trtllm_pt.runtime.sequence import Sequence
from trtllm_pt.runtime.step_plan import Int64s

Floats = npt.NDArray[np.float64]

BINS, BINS_PER_UNIT = 1024, 8  # log-weights by size, so that top_p need not sort those far below its cut


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry per row."""

    tokens: list[int]
    log_probs: list[float | None]  # None: not asked for
    errors: list[str | None]  # why the row has no token; the request ends


def sample(logits: npt.NDArray[np.float32], sequences: SequenceOf[Sequence], vocab_size: int) -> Sampled:
    """The next token of each sequence. logits float32 [R, V or more]; columns beyond vocab_size are padding, rows
    beyond the sequences were not wanted."""
    rows = logits[: len(sequences), :vocab_size]
    if all(is_plain(s) for s in sequences):
        tokens = rows.argmax(axis=1).tolist()  # first index on ties, and the index of a NaN if there is one
    else:
        tokens = [pick(row, s) for row, s in zip(rows, sequences, strict=True)]
    errors = [problem(row, token) for row, token in zip(rows, tokens, strict=True)]
    log_probs = [
        log_prob(row, token) if s.sampling.log_probs and error is None else None
        for row, token, error, s in zip(rows, tokens, errors, sequences, strict=True)
    ]
    return Sampled(tokens, log_probs, errors)


def is_plain(sequence: Sequence) -> bool:
    """Greedy, and nothing that changes a logit."""
    p = sequence.sampling
    untouched = p.repetition_penalty == 1 and p.presence_penalty == 0 and p.frequency_penalty == 0
    return p.temperature == 0 and untouched and not p.bad_words and may_end(sequence)


def may_end(sequence: Sequence) -> bool:
    """Neither the end id nor the last token of a stop word can come too early any more."""
    p = sequence.sampling
    return p.min_tokens == 0 or sequence.num_output + 1 >= p.min_tokens + max((1, *map(len, p.stop_words)))


def pick(row: npt.NDArray[np.float32], sequence: Sequence) -> int:
    """The next token of one sequence; -1: every token is forbidden."""
    if is_plain(sequence):
        return int(row.argmax())
    x = row.astype(np.float64)
    if np.isnan(x).any():
        return int(row.argmax())
    penalise(x, sequence)
    for token in forbidden(sequence):
        x[token] = -np.inf
    best = int(x.argmax())
    if x[best] == -np.inf:
        return -1
    if sequence.sampling.temperature == 0 or x[best] == np.inf:
        return best
    p = sequence.sampling
    with np.errstate(over="ignore"):  # a tiny temperature sends the others to -inf, as it should
        x -= x[best]
        x /= p.temperature
    tokens, weights = keep(x, p)
    return draw(tokens, weights, uniform(p.seed, sequence.known))


def problem(row: npt.NDArray[np.float32], token: int) -> str | None:
    if token < 0 or row[token] == -np.inf:
        return "no token is left to choose: bad_words, stop_words and min_tokens forbid every one"
    return "the logits are not numbers (NaN)" if np.isnan(row[token]) else None


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
        seen = np.unique(sequence.tokens[: sequence.known])
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


def keep(x: Floats, p: SamplingParams) -> tuple[Int64s, Floats]:
    """Tokens that top_k, top_p and min_p leave, with their weights (not normalised). x [V]: log-weights, the largest 0.

    top_k takes the k largest (ties: the lower id); top_p the fewest of those, largest first, that hold the share top_p;
    min_p those with at least min_p times the largest weight.
    """
    tokens = np.arange(len(x))
    if 0 < p.top_k < len(x):
        tokens = largest(x, p.top_k)
        x = x[tokens]
    weights = np.exp(x)
    if p.top_p < 1:
        order = nucleus(x, weights, p.top_p)
        tokens, weights = tokens[order], weights[order]
    if p.min_p > 0:
        likely = weights >= p.min_p * weights.max()
        tokens, weights = tokens[likely], weights[likely]
    return tokens, weights


def largest(x: Floats, k: int) -> Int64s:
    """Indices of the k largest values, largest first, the lower index first on ties."""
    threshold = np.partition(x, len(x) - k)[len(x) - k]
    candidates = np.flatnonzero(x >= threshold)
    return candidates[np.argsort(-x[candidates], kind="stable")][:k]


def nucleus(x: Floats, weights: Floats, top_p: float) -> Int64s:
    """Indices of the fewest weights, largest first, whose sum reaches top_p of all; x: their logarithms, at most 0."""
    bins = (np.minimum(-x, BINS / BINS_PER_UNIT - 1) * BINS_PER_UNIT).astype(np.int64)
    sums = np.cumsum(np.bincount(bins, weights))
    target = top_p * sums[-1]
    candidates = np.flatnonzero(bins <= np.searchsorted(sums, target))
    order = candidates[np.argsort(-x[candidates], kind="stable")]
    return order[: int(np.searchsorted(np.cumsum(weights[order]), target)) + 1]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else: Philox (Salmon et al. 2011), key `seed`, counter `position`."""
    return float(int(np.random.Philox(key=seed, counter=position).random_raw()) >> 11) * 2.0**-53


def draw(tokens: Int64s, weights: Floats, u: float) -> int:
    """The token at which the cumulative weight passes u of the whole: never one of weight 0."""
    sums = np.cumsum(weights)
    target = min(u * sums[-1], np.nextafter(sums[-1], 0))
    return int(tokens[np.searchsorted(sums, target, side="right")])


WHOLE, NUMBER = "a whole number", "a number"
RANGES: dict[str, tuple[str, float, float, str]] = {  # field: kind, least, most, the range in words
    "max_tokens": (WHOLE, 1, math.inf, "at least 1"),
    "temperature": (NUMBER, 0, math.inf, "at least 0 (0: greedy)"),
    "top_k": (WHOLE, 0, math.inf, "at least 0 (0: no limit)"),
    "top_p": (NUMBER, math.ulp(0), 1, "above 0 and at most 1"),
    "min_p": (NUMBER, 0, 1, "between 0 and 1"),
    "repetition_penalty": (NUMBER, math.ulp(0), math.inf, "above 0 (1: none)"),
    "presence_penalty": ("a finite number", -math.inf, math.inf, ""),
    "frequency_penalty": ("a finite number", -math.inf, math.inf, ""),
    "seed": (WHOLE, 0, 2**64 - 1, "between 0 and 2**64 - 1"),
    "min_tokens": (WHOLE, 0, math.inf, "at least 0"),
}


def check_sampling(p: SamplingParams, vocab_size: int) -> None:
    """Raises UsageError for the first field with a value that makes no sense."""
    for problem in sampling_problems(p, vocab_size):
        raise UsageError(problem)


def sampling_problems(p: SamplingParams, vocab_size: int) -> Iterator[str]:
    for name, (kind, least, most, words) in RANGES.items():
        value = getattr(p, name)
        good = isinstance(value, int if kind == WHOLE else int | float) and not isinstance(value, bool)
        if not good or not -math.inf < value < math.inf or not least <= value <= most:
            yield f"{name} ({value!r}) must be {kind} {words}".rstrip()
    if p.min_tokens > p.max_tokens:
        yield f"min_tokens ({p.min_tokens}) must not exceed max_tokens ({p.max_tokens})"
    if not isinstance(p.log_probs, bool):
        yield f"log_probs ({p.log_probs!r}) must be true or false"
    if p.end_id is not None and p.end_id != -1 and not is_token(p.end_id, vocab_size):
        yield f"end_id ({p.end_id!r}) must be a token id between 0 and {vocab_size - 1}, or -1 for none"
    for name in ("stop_words", "bad_words"):
        for index, word in enumerate(getattr(p, name)):
            if not isinstance(word, tuple) or not word:
                yield f"{name}[{index}] ({word!r}) must be a sequence of at least one token id"
            elif not all(is_token(token, vocab_size) for token in word):
                yield f"{name}[{index}] ({list(word)}) must have token ids between 0 and {vocab_size - 1}"


def is_token(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
