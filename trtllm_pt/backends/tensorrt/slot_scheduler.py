"""The scheduler of native TensorRT engines. Steps of two kinds alternate: one token of every sequence that decodes, and
a chunk of one prompt."""

from __future__ import annotations

from trtllm_pt.backends.tensorrt.profiles import DECODE, PREFILL
from trtllm_pt.backends.tensorrt.slot_plan import Layout, SlotPlan
from trtllm_pt.backends.tensorrt.slots import Slots
from trtllm_pt.batching.scheduler import Scheduler
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.sequence import Sequence


def decode_sizes(slots: int) -> tuple[int, ...]:
    """Return the numbers of slots that a decode step can have: powers of two, and all slots.

    A step of another size is rounded up, so that few CUDA graphs serve all steps.
    """
    return (*(1 << bit for bit in range((slots - 1).bit_length())), slots)


class SlotScheduler(Scheduler[SlotPlan]):
    """Gives every sequence a slot of the KV cache until it ends. So nothing is ever preempted.

    slot_size: tokens of a slot. chunk: the most tokens of a chunk; `chunk_beside`: while others decode, so that a long
    prompt does not stall them; `scored_chunk`: if log-probs of the prompt are wanted.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        slots: int,
        slot_size: int,
        chunk: int,
        chunk_beside: int,
        scored_chunk: int,
        end_id: int = -1,
    ) -> None:
        super().__init__(limits, slots, end_id)
        self.page_tokens = slot_size
        self.chunk, self.chunk_beside, self.scored_chunk = chunk, chunk_beside, scored_chunk
        self.slots = Slots(slots)
        self._sizes = decode_sizes(slots)
        self._decoded = False  # whether the last step was a decode step

    @property
    def pages_total(self) -> int:
        return self.slots.total

    @property
    def pages_held(self) -> int:
        return self.slots.total - self.slots.free

    def check_integrity(self) -> None:
        super().check_integrity()
        held = [slot for sequence in self.running for slot in sequence.pages]
        assert len(held) == len(set(held)) == self.pages_held == len(self.running)

    # Choosing the next step

    def _one_further(self) -> SlotPlan | None:
        plan = self._lasting
        if plan is not None:
            numbers, (tokens, positions, starts, lengths, _) = plan.numbers, plan.layout.offsets
            for sequence in self.wanted:  # as SlotPlan.decode does, but a call for each takes too long here
                slot, computed = sequence.pages[0], sequence.computed
                numbers[tokens + slot] = sequence.tokens[-1]
                numbers[positions + slot] = numbers[starts + slot] = computed
                numbers[lengths + slot] = computed + 1
        return plan

    def _new_plan(self) -> SlotPlan | None:
        self._step, self.wanted, self._scored, self._complete, self._lasting = [], [], [], [], None
        self._admit()
        decodes = [sequence for sequence in self.running if sequence.known - sequence.computed == 1]
        prompts = [sequence for sequence in self.running if sequence.known - sequence.computed > 1]
        if prompts and (self._decoded or not decodes):
            self._decoded = False
            return self._prefill(prompts[0], self.chunk_beside if decodes else self.chunk)
        if not decodes:
            return None
        self._decoded = True
        plan = self._decode(decodes)
        if len(self.wanted) == len(self.running):
            self._lasting = plan
        return plan

    def _admit(self) -> None:
        while self.waiting and self.slots.free:
            sequence = self.waiting.first
            # At least one token must be computed, and all of a prompt whose tokens' scores are wanted.
            reusable = 0 if sequence.unscored else sequence.known - 1
            slot, sequence.computed = self.slots.take(sequence.tokens, reusable, sequence.salt)
            sequence.pages = [slot]
            self._admit_first()

    def _prefill(self, sequence: Sequence, most: int) -> SlotPlan:
        """Return the plan of a prompt's next chunk."""
        start = sequence.computed
        count = min(sequence.known - start, most, self.scored_chunk if sequence.unscored else most)
        end = start + count
        self._step.append((sequence, count))
        scored = self._rows_to_score(sequence, end)
        wanted = self._wants_a_token(sequence, end)
        last = [count - 1] if wanted or not scored else []
        last += [row - start for row in scored]
        return SlotPlan.of(
            Layout.of(PREFILL, sequence.pages[0], 1, count, len(last)),
            (sequence.tokens[start:end], range(start, end), (start,), (end,), last),
            int(wanted),
            sequence.tokens[scored.start + 1 : scored.stop + 1],
            self._most_top(),
        )

    def _decode(self, sequences: list[Sequence]) -> SlotPlan:
        """Return the plan of a step that computes one token of each sequence."""
        end = max(sequence.pages[0] for sequence in sequences) + 1
        size = next(size for size in self._sizes if size >= end)
        starts = [self.slots.held(slot) for slot in range(size)]
        for sequence in self.running:
            if (slot := sequence.pages[0]) < size:
                starts[slot] = sequence.computed
        last = []
        for sequence in sequences:
            self._step.append((sequence, 1))
            if self._wants_a_token(sequence, sequence.computed + 1):
                last.append(sequence.pages[0])
        nothing = [0] * size
        inputs = (nothing, nothing, starts, [1] * size, last + [0] * (size - len(last)))
        plan = SlotPlan.of(Layout.of(DECODE, 0, size, 1, size), inputs, len(last))
        for sequence in sequences:
            plan.decode(sequence.pages[0], sequence.tokens[sequence.computed], sequence.computed)
        return plan

    def _release(self, sequence: Sequence) -> None:
        self.slots.release(sequence.pages[0], sequence.tokens[: sequence.computed])
        sequence.pages, sequence.computed = [], 0
