"""Log-probs from logits: log softmax of raw logits, with the likeliest tokens.

The numbers are the same bits for any number of ranks, and for a token that is scored as part of a prompt or as part of
an output (kernels/scores.cpp).
Shapes: R rows, V vocabulary, N tokens in a rank's slice of the vocabulary, k likeliest tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trtllm_pt.requests.messages import TokenScore


def score_slice(logits: Tensor, first: int, vocab: int, targets: Tensor, top: int) -> Tensor:
    """Return what a rank's slice of the vocabulary, tokens first to first + N, contributes to the log-probs.

    logits: float32 [R, N]. targets: int64 [R]. Tokens from `vocab` on are padding.
    """
    part: Tensor = torch.ops.trtllm_pt.score_slice(logits, first, vocab, targets, top)
    return part


def merge(parts: Tensor, slice_size: int, vocab: int, top: int) -> list[TokenScore]:
    """Return the log-prob of each row's target and its `top` likeliest tokens, from the parts [ranks, R, ..]."""
    chosen, values, tokens = torch.ops.trtllm_pt.merge_scores(parts, slice_size, vocab, top)
    rows = zip(chosen.tolist(), tokens.tolist(), values.tolist(), strict=True)
    return [
        TokenScore(
            log_prob,
            tuple((token, value) for token, value in zip(ids, likely, strict=True) if value > -math.inf),
        )
        for log_prob, ids, likely in rows
    ]


def score(logits: npt.NDArray[np.float32], targets: Sequence[int], top: int) -> list[TokenScore]:
    """Return the log-prob of each row's target and its `top` likeliest tokens. logits: [R, V]."""
    whole, vocab = torch.from_numpy(np.ascontiguousarray(logits)), logits.shape[1]
    return merge(score_slice(whole, 0, vocab, torch.tensor(targets), top)[None], vocab, vocab, top)
