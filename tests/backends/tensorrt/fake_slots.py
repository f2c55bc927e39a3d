"""A model whose logits are a pure function of the token prefix, read from slots as a real one reads it."""

from __future__ import annotations

import numpy as np
import torch

from tests.backends.embedded.fake import VOCAB, digest, logits_of
from trtllm_pt.backends.tensorrt.profiles import DECODE, PREFILL
from trtllm_pt.backends.tensorrt.slot_plan import SlotPlan, StepMessage
from trtllm_pt.backends.tensorrt.slot_scheduler import SlotScheduler, decode_sizes
from trtllm_pt.batching.sampling import sample, score_rows
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request, Tokens, TokenScore

SLOT = 256
GARBAGE = 0xBAD


class FakeModel:
    """Its cache entry at a position is a hash chained over all tokens before. It is read in another rank's message."""

    def __init__(self, slots: int, chunk: int = 64) -> None:
        self.cache = np.zeros((slots, SLOT), np.uint64)
        self.chunk = chunk
        self.kinds: list[tuple[int, int, int]] = []  # of each step: the profile, the slots, and the tokens of each
        self.scores: list[TokenScore] = []
        room = StepMessage.room_for(slots, chunk, chunk)
        self.ours, self.theirs = (StepMessage(torch.full((room,), -7, dtype=torch.int32)) for _ in range(2))

    def run(self, plan: SlotPlan) -> np.ndarray:
        """Logits float32 [R, VOCAB]."""
        self.ours.write(plan)
        self.theirs.room[: len(self.ours.numbers)] = self.ours.numbers
        self.theirs.read()
        layout, numbers = self.theirs.layout, self.theirs.tensor.numpy()
        self.kinds.append((layout.profile, layout.slots, layout.each))
        if layout.profile == DECODE:
            assert layout.slot == 0 and layout.each == 1 and layout.slots in decode_sizes(len(self.cache))
            assert layout.rows == layout.slots
        else:
            assert layout.profile == PREFILL and layout.slots == 1 and layout.each <= self.chunk
        sizes = layout.shapes().values()
        parts = zip(layout.offsets, sizes, strict=True)
        tokens, positions, starts, lengths, last = (
            numbers[first : first + int(np.prod(size))].reshape(size) for first, size in parts
        )
        states = np.zeros(tokens.shape, np.uint64)
        for row in range(layout.slots):
            slot, start = layout.slot + row, int(starts[row])
            for each in range(layout.each):
                at = start + each
                if lengths[row] == start + layout.each:
                    assert positions[row, each] == at
                    states[row, each] = digest(int(self.cache[slot, at - 1]) if at else 7, int(tokens[row, each]))
                else:  # a slot that does not take part: it reads its first position only
                    assert (lengths[row], positions[row, each], layout.each) == (1, 0, 1)
                    states[row, each] = GARBAGE
                self.cache[slot, at] = states[row, each]
        found = np.stack([logits_of(int(states.flat[token])) for token in last])
        wanted, scored = plan.wanted, plan.wanted + len(plan.targets)
        self.scores = score_rows(found[wanted:scored], plan.targets, plan.top)
        return found[:wanted]


def make(slots: int = 4, chunk: int = 64, chunk_beside: int = 16, scored_chunk: int = 8) -> SlotScheduler:
    limits = Limits(vocab_size=VOCAB, max_seq_len=SLOT, max_input_len=SLOT - 1)
    sizes = {"slots": slots, "slot_size": SLOT, "chunk": chunk, "chunk_beside": chunk_beside}
    return SlotScheduler(limits, scored_chunk=scored_chunk, **sizes)


def step(scheduler: SlotScheduler, model: FakeModel) -> list[Tokens] | None:
    """One step; None: idle."""
    plan = scheduler.schedule()
    if plan is None:
        return None
    scheduler.check_integrity()
    sampled = sample(model.run(plan), scheduler.wanted)
    messages = scheduler.finish_step(sampled, model.scores)
    scheduler.check_integrity()
    return messages


def drain(scheduler: SlotScheduler, model: FakeModel) -> dict[int, list[Tokens]]:
    """Run until idle; the messages by request."""
    messages: dict[int, list[Tokens]] = {}
    while (new := step(scheduler, model)) is not None:
        for message in new:
            messages.setdefault(message.id, []).append(message)
    return messages


def alone(request: Request) -> list[Tokens]:
    """What a request gets with an engine to itself."""
    scheduler = make(1)
    scheduler.add(request)
    return drain(scheduler, FakeModel(1))[request.id]
