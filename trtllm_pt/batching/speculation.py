"""Prompt lookup: draft the next tokens of a sequence from its own earlier tokens (Saxena 2023, Prompt Lookup Decoding).

If the last three tokens have occurred before, the tokens that followed them are the draft. One step computes the
sequence's newest token and the draft together, and as many drafted tokens are kept as sampling would have chosen. So
the output is the same as without drafts, bit for bit, and several tokens share a step and its all-reduces.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

from trtllm_pt.requests.sequence import Sequence

_MATCH = 3  # tokens that must have occurred before
# The part of a decoding step that does not grow with its tokens, in tokens: most of it is the reading of the weights.
# On a dense model of 150 million parameters, a step of 1 token took 10 ms, and one of 16 tokens 28 ms.
_FIXED_COST = 8
_MEMORY = 16  # drafted tokens that the estimate of the acceptance rate looks back on


@dataclass(slots=True)
class Draft:
    """The drafted tokens of a sequence in a step. Their logits follow the row of its newest known token."""

    tokens: array[int]
    row: int = 0  # the row of logits that the newest known token has
    accepted: int = 0

    @property
    def next_row(self) -> int:
        """The row of logits after the accepted tokens."""
        return self.row + self.accepted

    def accepts(self, token: int) -> bool:
        """Return whether a sampled token is the next one of the draft, and count it if so."""
        agrees = self.accepted < len(self.tokens) and self.tokens[self.accepted] == token
        self.accepted += agrees
        return agrees


class Speculation:
    """Drafts for the sequences of an engine. most: the most tokens of a draft."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.drafted = self.accepted = 0  # tokens until now
        self._histories: dict[int, _History] = {}  # by the id of the sequence

    def propose(self, sequence: Sequence, batch: int, room: int) -> array[int]:
        """Return the tokens that probably follow a sequence, which may be none.

        batch: sequences in the step. A drafted token is worth its cost if it is accepted with a probability of at least
        batch / (batch + _FIXED_COST), because a step's fixed cost is shared by its sequences. room: the most tokens.
        """
        history = self._histories.get(sequence.id)
        if history is None:
            history = self._histories[sequence.id] = _History()
        follow = history.find(sequence.tokens)
        if follow is None:
            return array("q")
        count = min(history.worthwhile(batch / (batch + _FIXED_COST), self.most), room)
        return _repeated(sequence.tokens, follow, count)

    def learn(self, sequence: Sequence, draft: Draft) -> None:
        """Take note of how many tokens of a sequence's draft were accepted."""
        self._histories[sequence.id].learn(len(draft.tokens), draft.accepted)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is known of a sequence that has finished."""
        self._histories.pop(sequence.id, None)


@dataclass(slots=True)
class _History:
    """Where a sequence's runs of _MATCH tokens were followed last, and how its drafts fared."""

    follows: dict[tuple[int, ...], int] = field(default_factory=dict)  # the position after the latest such run
    seen: int = _MATCH  # all positions before this one are in `follows`
    right: float = 0.0  # drafted tokens that were accepted, and those that were not; older ones count less
    wrong: float = 0.0

    def find(self, tokens: array[int]) -> int | None:
        """Return the position after the latest earlier occurrence of the last _MATCH tokens, or None."""
        for position in range(self.seen, len(tokens)):
            self.follows[tuple(tokens[position - _MATCH : position])] = position
        self.seen = max(self.seen, len(tokens))
        return self.follows.get(tuple(tokens[-_MATCH:]))

    def worthwhile(self, least: float, most: int) -> int:
        """Return how many drafted tokens, at most `most`, are all accepted with a probability of at least `least`."""
        rate = (self.right + 1) / (self.right + self.wrong + 1)  # a sequence is trusted until a draft fails
        if rate < least:
            self.wrong *= 1 - 1 / _MEMORY  # so that it is tried again after a while
            return 0
        return most if rate == 1 else min(most, int(math.log(least) / math.log(rate)))

    def learn(self, drafted: int, accepted: int) -> None:
        tried = accepted + (accepted < drafted)  # what follows a wrong token was not tried
        kept = (1 - 1 / _MEMORY) ** tried
        self.right = self.right * kept + accepted
        self.wrong = self.wrong * kept + (accepted < drafted)


def _repeated(tokens: array[int], start: int, count: int) -> array[int]:
    """Return `count` tokens from position `start` on; after the last token, the draft itself goes on repeating."""
    draft = tokens[start : start + count]
    period = len(tokens) - start
    while len(draft) < count:
        draft.append(draft[len(draft) - period])
    return draft
