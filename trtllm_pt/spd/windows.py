"""The tokens on which a model is measured and distilled: windows of equal length, from any texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trtllm_pt.checkpoint.source import Source
from trtllm_pt.errors import UsageError
from trtllm_pt.text.documents import read_texts
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

FEWEST = 8


def read_windows(source: Source, paths: Iterable[Path], length: int, most_tokens: int) -> Tensor:
    """Return windows [N, length + 1] of the texts, one after the other. A window predicts `length` tokens.

    If the texts have more than `most_tokens` tokens, the windows are evenly spread over them.
    Raises UsageError if the texts have fewer than 8 windows, or tokens outside the vocabulary, and as `read_texts`.
    """
    if length > source.config.max_position_embeddings:
        most = source.config.max_position_embeddings
        raise UsageError(f"--window ({length}) must be at most the model's max_position_embeddings ({most})")
    tokenizer = load_tokenizer(source.tokenizer) if source.tokenizer else None
    end_id = end_ids(source.tokenizer)[0] if source.tokenizer else -1
    tokens = [token for text in read_texts(tokenizer, end_id, paths) for token in text.tokens]
    count = (len(tokens) - 1) // length
    if count < FEWEST:
        raise UsageError(
            f"--text has {len(tokens)} tokens; it must have at least {FEWEST * length + 1}, for {FEWEST} windows of "
            f"{length} (--window)"
        )
    if max(tokens) >= source.config.vocab_size:
        raise UsageError(
            f"--text has token {max(tokens)}, outside the model's vocabulary of {source.config.vocab_size}"
        )
    used = min(count, max(FEWEST, most_tokens // length))
    starts = np.linspace(0, count - 1, used).astype(int) * length
    return torch.tensor([tokens[start : start + length + 1] for start in starts])
