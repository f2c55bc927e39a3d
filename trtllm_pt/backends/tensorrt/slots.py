"""The slots of the KV cache. A slot holds one sequence, and afterwards keeps what it held until another one gets it.

Rank 0 only. A request takes over the free slot that holds the longest beginning of its tokens. What a running sequence
holds is not shared, because a sequence has to lie in one piece of memory.
"""

from __future__ import annotations

from array import array

import numpy as np

_WORTHWHILE = 16  # tokens; fewer are computed again, so that a first token in common does not cost another prefix


class Slots:
    """Which slots are free, and the tokens whose keys and values they hold."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free: dict[int, array[int]] = {slot: array("q") for slot in range(total)}  # in order of release
        self._salts = [b""] * total  # of the requests that computed what the slots hold

    @property
    def free(self) -> int:
        return len(self._free)

    def held(self, slot: int) -> int:
        """Return how many tokens a free slot holds, or 0 for one that is not free."""
        return len(self._free.get(slot, ()))

    def take(self, tokens: array[int], reusable: int, salt: bytes = b"") -> tuple[int, int]:
        """Take the slot that suits a sequence best. Returns it, and how many of the sequence's first tokens it holds.

        reusable: the most tokens to reuse, of requests with the same salt. Without a prefix worth reusing it is an
        empty slot, the first one, or else the one that was released first.
        """
        slot, shared = max(
            (
                (slot, _shared(held, tokens, reusable if self._salts[slot] == salt else 0))
                for slot, held in self._free.items()
            ),
            key=lambda pair: pair[1],
        )
        if shared < _WORTHWHILE:
            empty = [slot for slot, held in self._free.items() if not held]
            slot, shared = min(empty) if empty else next(iter(self._free)), 0
        del self._free[slot]
        self._salts[slot] = salt
        return slot, shared

    def release(self, slot: int, tokens: array[int]) -> None:
        """Free a slot, which holds these tokens."""
        assert slot not in self._free, f"slot {slot} was released twice"
        self._free[slot] = tokens


def _shared(held: array[int], tokens: array[int], most: int) -> int:
    """Return how many tokens two sequences begin with in common, up to `most`."""
    count = min(len(held), len(tokens), most)
    if count <= 0 or held[0] != tokens[0]:
        return 0
    a, b = (np.frombuffer(each, np.int64, count) for each in (held, tokens))
    different = np.flatnonzero(a != b)
    return int(different[0]) if len(different) else count
