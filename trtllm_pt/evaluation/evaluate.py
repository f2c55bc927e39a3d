"""Predict every token of some texts with one engine or with two, and summarise how well they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trtllm_pt.evaluation.windows import Window, windows
from trtllm_pt.requests.limits import MOST_LOGITS_BYTES
from trtllm_pt.requests.messages import SamplingParams, TokenScore
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.text.documents import Text

Floats = npt.NDArray[np.float64]
_SCORES = SamplingParams(max_tokens=0, prompt_log_probs=True, top_log_probs=1)
_ROWS = 64  # rows of the vocabulary whose divergences are computed at a time


@dataclass(frozen=True, slots=True)
class Predictions:
    """What an engine says of the predicted tokens of all texts, in order."""

    log_probs: npt.NDArray[np.float64]  # natural logarithms
    likeliest: npt.NDArray[np.int64]  # the token that the engine would have chosen
    tokens: npt.NDArray[np.int64]
    window_sizes: Sequence[int]  # how many of them each window predicts
    bytes: int

    def summary(self) -> Mapping[str, float | int]:
        """Return tokens, bytes, nats per token, perplexity, bits per byte and top-1 accuracy."""
        nats = -float(self.log_probs.sum())
        count = len(self.tokens)
        return {
            "tokens": count,
            "bytes": self.bytes,
            "nats_per_token": nats / count,
            "perplexity": math.exp(nats / count),
            "bits_per_byte": nats / math.log(2) / self.bytes,
            "top1_accuracy": float((self.likeliest == self.tokens).mean()),
        }


Advance = Callable[[int], object]  # called with the number of tokens after each batch
Work = Sequence[tuple[Text, Window]]


def predict(
    llm: LLM, texts: Sequence[Text], window: int, stride: int, advance: Advance = lambda tokens: None
) -> Predictions:
    """Predict the tokens of texts in windows."""
    work = _work(texts, window, stride)
    found: list[TokenScore] = []
    for some in _batches(work, max(1, llm.manifest.options.max_batch_size)):
        found += _scores(llm, some, _SCORES)
        advance(_predicted(some))
    return _predictions(texts, work, found)


def predict_both(
    ours: LLM, other: LLM, texts: Sequence[Text], window: int, stride: int, advance: Advance = lambda tokens: None
) -> tuple[Predictions, Predictions, Floats]:
    """Predict the tokens of texts with two engines, window by window.

    Returns also the divergence of our prediction of each token from the other's, over the whole vocabulary. At most
    MOST_LOGITS_BYTES of logits of each engine are in memory at a time, as long as a window needs no more.
    """
    work = _work(texts, window, stride)
    bytes_each = 4 * ours.manifest.model.vocab_size * (window + 1)
    size = min(llm.manifest.options.max_batch_size for llm in (ours, other))
    wanted = replace(_SCORES, context_logits=True)
    found: tuple[list[TokenScore], list[TokenScore]] = ([], [])
    divergences: list[float] = []
    for some in _batches(work, max(1, min(size, MOST_LOGITS_BYTES // bytes_each))):
        one, two = _scores(ours, some, wanted), _scores(other, some, wanted)
        for begin in range(0, len(one), _ROWS):
            rows = (_logits(each[begin : begin + _ROWS]) for each in (two, one))
            divergences += divergence(*rows).tolist()
        for kept, scores in zip(found, (one, two), strict=True):
            kept += (score._replace(logits=b"") for score in scores)
        advance(_predicted(some))
    return _predictions(texts, work, found[0]), _predictions(texts, work, found[1]), np.array(divergences)


def divergence(true: Floats, other: Floats) -> Floats:
    """Return the KL divergence of `other` from `true` in nats, float64 [T]. Both are logits [T, V]."""
    p, q = _log_softmax(true), _log_softmax(other)
    with np.errstate(invalid="ignore"):  # a token that has no probability adds nothing, whatever the other says of it
        terms = np.where(p > -np.inf, np.exp(p) * (p - q), 0.0)
    sums: Floats = terms.sum(axis=1)
    return sums


def _log_softmax(logits: Floats) -> Floats:
    x: Floats = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def _logits(scores: Sequence[TokenScore]) -> Floats:
    return np.stack([np.frombuffer(score.logits, np.float32) for score in scores]).astype(np.float64)


def _work(texts: Sequence[Text], window: int, stride: int) -> Work:
    return [(text, one) for text in texts for one in windows(len(text.tokens), window, stride)]


def _batches(work: Work, size: int) -> Iterator[Work]:
    return (work[begin : begin + size] for begin in range(0, len(work), size))


def _predicted(work: Work) -> int:
    return sum(one.predicted for _, one in work)


def _scores(llm: LLM, work: Work, sampling: SamplingParams) -> list[TokenScore]:
    """Return what an engine says of the tokens that these windows predict."""
    results = llm.generate([text.tokens[one.begin : one.end] for text, one in work], sampling)
    pairs = zip(work, results, strict=True)
    return [score for (_, one), result in pairs for score in result.prompt_scores[-one.predicted :]]


def _predictions(texts: Sequence[Text], work: Work, scores: Sequence[TokenScore]) -> Predictions:
    tokens = [token for text, one in work for token in text.tokens[one.end - one.predicted : one.end]]
    return Predictions(
        log_probs=np.array([score.log_prob for score in scores]),
        likeliest=np.array([score.top[0][0] for score in scores]),
        tokens=np.array(tokens),
        window_sizes=[one.predicted for _, one in work],
        bytes=sum(text.bytes for text in texts),
    )
