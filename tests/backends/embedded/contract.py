"""The numerics contract on one engine and any number of ranks, bit for bit: `contract.py ENGINE OUT.npy`.

Prints what it saw as JSON; OUT.npy has the logits of the prompts, one after the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from trtllm_pt.backends.embedded.session import Session, open_session
from trtllm_pt.backends.embedded.step_plan import StepPlan

LENGTHS = (1, 5, 16, 17, 33, 100)
PAGE = 16


def prompts(vocab_size: int) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.integers(0, vocab_size, length) for length in LENGTHS]


class Sequences:
    """Sequences in the KV cache of a session, each with pages of its own."""

    def __init__(self, session: Session, count: int, shuffle: int | None = None) -> None:
        self.session = session
        self.width = -(-session.manifest.max_seq_len // PAGE)
        numbers = np.arange(count * self.width)
        if shuffle is not None:
            numbers = np.random.default_rng(shuffle).permutation(numbers)
        self.pages = numbers.reshape(count, self.width)
        self.lengths = np.zeros(count, np.int64)

    def run(self, parts: dict[int, np.ndarray]) -> list[np.ndarray]:
        """New tokens of some sequences in one call; the logits of all of them."""
        numbers = list(parts)
        counts = [len(parts[number]) for number in numbers]
        plan = StepPlan(
            tokens=np.concatenate(list(parts.values())),
            starts=self.lengths[numbers],
            offsets=np.concatenate(([0], np.cumsum(counts))),
            pages=self.pages[numbers],
            last=np.arange(sum(counts)),
        )
        logits = self.session.run(plan)
        self.lengths[numbers] += counts
        return np.split(logits.copy(), np.cumsum(counts)[:-1])


def check(session: Session, tokens: list[np.ndarray]) -> list[np.ndarray]:
    """Asserts that logits depend on the own sequence alone; returns them."""
    alone = [Sequences(session, 1).run({0: prompt})[0] for prompt in tokens]

    def same(got: list[np.ndarray], what: str) -> None:
        for number, (a, b) in enumerate(zip(got, alone, strict=True)):
            assert a.tobytes() == b.tobytes(), f"{what}: prompt {number} differs by {np.abs(a - b).max()}"

    same(Sequences(session, len(tokens)).run(dict(enumerate(tokens))), "all in one call")
    same(Sequences(session, len(tokens), shuffle=3).run(dict(enumerate(tokens))), "other pages")

    reversed_order = Sequences(session, len(tokens)).run({n: tokens[n] for n in reversed(range(len(tokens)))})
    same(reversed_order[::-1], "another order")

    one = tokens[4]
    for cut in range(1, len(one)):
        sequence = Sequences(session, 1)
        parts = [sequence.run({0: one[:cut]})[0], sequence.run({0: one[cut:]})[0]]
        assert np.concatenate(parts).tobytes() == alone[4].tobytes(), f"cut at {cut}"

    steps = Sequences(session, len(tokens))
    columns: list[list[np.ndarray]] = [[] for _ in tokens]
    for position in range(max(LENGTHS)):
        parts = {n: prompt[position : position + 1] for n, prompt in enumerate(tokens) if position < len(prompt)}
        for number, logits in zip(parts, steps.run(parts), strict=True):
            columns[number].append(logits)
    same([np.concatenate(column) for column in columns], "token by token, in one batch")

    mixed = Sequences(session, 2)  # one decodes while the other's prompt comes in chunks
    first, second = [mixed.run({0: tokens[5][:60]})[0]], []
    for step in range(40):
        parts = {0: tokens[5][60 + step : 61 + step]}
        if step < 11:
            parts[1] = tokens[4][3 * step : 3 * step + 3]
        got = mixed.run(parts)
        first.append(got[0])
        second += got[1:]
    assert np.concatenate(first).tobytes() == alone[5].tobytes(), "decode beside a prefill"
    assert np.concatenate(second).tobytes() == alone[4].tobytes(), "prefill beside a decode"
    return alone


def main() -> None:
    session = open_session(Path(sys.argv[1]), threads=1)
    if session.world.rank:
        session.follow()
        return
    alone = check(session, prompts(session.manifest.model.vocab_size))
    if session.world.size == 1:
        torch.set_num_threads(2)
        again = check(session, prompts(session.manifest.model.vocab_size))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(alone, again, strict=True)), "2 threads"
    np.save(sys.argv[2], np.concatenate(alone))
    session.close()
    print(json.dumps({"sync_points_seen": session.sync_points_seen, "hops": session.world.hops / session.forwards}))


if __name__ == "__main__":
    main()
