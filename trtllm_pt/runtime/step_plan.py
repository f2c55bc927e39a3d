"""What rank 0 tells the other ranks about a step, as arrays and as one flat message.

T tokens in the step, B sequences, R rows of logits wanted, MP pages a sequence can have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_pt.runtime.kv_pages import PAGE, pages_for

Int64s = npt.NDArray[np.int64]

# Size of the whole message, T, B, R, MP. A message never has size 0, so a session may give 0 its own meaning.
HEADER = 5


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """One forward. All arrays int64."""

    tokens: Int64s  # [T], sequence after sequence
    starts: Int64s  # [B] position of a sequence's first token in this step
    offsets: Int64s  # [B + 1] where its tokens lie in `tokens`
    pages: Int64s  # [B, MP] its pages in order, unused entries 0
    last: Int64s  # [R] indices into `tokens` whose logits are wanted; R is at least 1, for a graph needs a row

    @staticmethod
    def max_size(max_batch_size: int, max_num_tokens: int, max_seq_len: int) -> int:
        """Entries that the longest message under these limits has."""
        return HEADER + max_num_tokens + max_batch_size * (3 + pages_for(max_seq_len)) + 1

    def to_buffer(self) -> Int64s:
        """The plan as one message: header, tokens, starts, offsets, last, then only the pages in use.

        Its first entry is its length.
        """
        used = self.pages[self._pages_in_use(self.starts, self.offsets, self.pages.shape[1])]
        parts = (self.tokens, self.starts, self.offsets, self.last, used)
        size = HEADER + sum(len(part) for part in parts)
        header = np.array([size, len(self.tokens), len(self.starts), len(self.last), self.pages.shape[1]], np.int64)
        return np.concatenate((header, *parts))

    @classmethod
    def from_buffer(cls, buffer: Int64s) -> StepPlan:
        """The plan of a message; entries behind its end are ignored, and nothing refers to `buffer` afterwards."""
        size, tokens, sequences, rows, width = buffer[:HEADER].tolist()
        ends = np.cumsum([HEADER, tokens, sequences, sequences + 1, rows])
        _, new, starts, offsets, last, used = np.split(buffer[:size].copy(), ends)
        pages = np.zeros((sequences, width), np.int64)
        pages[cls._pages_in_use(starts, offsets, width)] = used
        return cls(new, starts, offsets, pages, last)

    @staticmethod
    def _pages_in_use(starts: Int64s, offsets: Int64s, width: int) -> npt.NDArray[np.bool_]:
        """[B, MP]: which entries of `pages` a step reads or writes."""
        ends = starts + offsets[1:] - offsets[:-1]
        mask: npt.NDArray[np.bool_] = np.arange(width) < -(-ends // PAGE)[:, None]
        return mask
