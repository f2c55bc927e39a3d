"""The requests that wait for their turn, in order of priority. Every operation stays cheap with very many of them."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from trtllm_pt.requests.sequence import Sequence

_SPARE = 64  # places of removed sequences that are always kept


class Waiting:
    """Sequences in order of their places, which are all different: a heap of places, and the sequence at each.

    The place of a sequence that is removed stays in the heap until it comes first, or until most places are such. So
    adding, taking the first and removing take O(log n) on average.
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []  # a heap
        self._sequences: dict[tuple[int, int], Sequence] = {}  # by place

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over all sequences in order."""
        return (self._sequences[place] for place in sorted(self._sequences))

    @property
    def first(self) -> Sequence:
        """The sequence whose turn is next. There must be one."""
        while self._places[0] not in self._sequences:
            heappop(self._places)
        return self._sequences[self._places[0]]

    def add(self, sequence: Sequence) -> None:
        self._sequences[sequence.place] = sequence
        heappush(self._places, sequence.place)

    def take_first(self) -> Sequence:
        """Remove and return the first sequence."""
        sequence = self.first
        heappop(self._places)
        del self._sequences[sequence.place]
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence from anywhere in the order, for good."""
        del self._sequences[sequence.place]
        if len(self._places) > 2 * len(self._sequences) + _SPARE:
            self._places = sorted(self._sequences)
