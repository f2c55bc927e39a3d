"""Predict every token of some texts with an engine, and summarise how well it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_pt.evaluation.windows import Window, windows
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM, RunResult
from trtllm_pt.text.documents import Text

_SCORES = SamplingParams(max_tokens=0, prompt_log_probs=True, top_log_probs=1)


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


def predict(
    llm: LLM, texts: Sequence[Text], window: int, stride: int, advance: Callable[[int], object] = lambda tokens: None
) -> Predictions:
    """Predict the tokens of texts in windows. `advance` is called with the number of tokens after each batch."""
    work = [(text, one) for text in texts for one in windows(len(text.tokens), window, stride)]
    size = max(1, llm.manifest.options.max_batch_size)
    log_probs: list[float] = []
    likeliest: list[int] = []
    tokens: list[int] = []
    for begin in range(0, len(work), size):
        some = work[begin : begin + size]
        results = llm.generate([text.tokens[one.begin : one.end] for text, one in some], _SCORES)
        for (text, one), result in zip(some, results, strict=True):
            _take(text, one, result, log_probs, likeliest, tokens)
        advance(sum(one.predicted for _, one in some))
    return Predictions(
        log_probs=np.array(log_probs),
        likeliest=np.array(likeliest),
        tokens=np.array(tokens),
        window_sizes=[one.predicted for _, one in work],
        bytes=sum(text.bytes for text in texts),
    )


def _take(
    text: Text, window: Window, result: RunResult, log_probs: list[float], likeliest: list[int], tokens: list[int]
) -> None:
    scores = result.prompt_scores[-window.predicted :]
    log_probs += (score.log_prob for score in scores)
    likeliest += (score.top[0][0] for score in scores)
    tokens += text.tokens[window.end - window.predicted : window.end]
