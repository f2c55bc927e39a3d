"""Packs and unpacks stop and bad words as TensorRT-LLM's clients send them: int32 [2, N], token ids and word ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_pt.errors import UsageError

_MOST = 1 << 16  # the limit for the tokens of all words, because every step searches for every word
Int32s = npt.NDArray[np.int32]


def pack(lists: Sequence[Sequence[Sequence[int]]]) -> Int32s:
    """Pack one list of words per row of a batch into an array [B, 2, N]. Unused ids are 0, and unused ends are -1."""
    flat = [[token for word in words for token in word] for words in lists]
    packed = np.zeros((len(lists), 2, max((1, *map(len, flat))) if any(flat) else 0), np.int32)
    packed[:, 1] = -1
    for row, words in enumerate(lists):
        packed[row, 0, : len(flat[row])] = flat[row]
        packed[row, 1, : len(words)] = np.cumsum([len(word) for word in words])
    return packed


def unpack(packed: npt.NDArray[Any], name: str) -> tuple[tuple[int, ...], ...]:
    """Return the words of one row, [2, N]. Raises UsageError, with the tensor's `name`, for any other form."""
    if packed.ndim != 2 or packed.shape[0] != 2:
        raise UsageError(f"{name} has shape {list(packed.shape)}, but must have shape [2, N]: token ids and word ends")
    if packed.shape[1] > _MOST:
        raise UsageError(f"{name} has {packed.shape[1]} token ids, but must have at most {_MOST}")
    ids, ends = packed.tolist()
    words, start = [], 0
    for end in ends:
        if end == -1:
            continue
        if not start < end <= len(ids):
            raise UsageError(f"{name}: the word ends {ends} must increase and be at most {len(ids)}")
        words.append(tuple(ids[start:end]))
        start = end
    return tuple(words)
