"""The embedded engine's scheduler. The KV cache consists of pages, and a step has a token of every decoding sequence,
with a draft of the next ones if there is one, and chunks of prompts."""

from __future__ import annotations

from array import array

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.kv_pages import ROOT, PagePool, page_key, pages_for
from trtllm_pt.backends.embedded.step_plan import StepPlan
from trtllm_pt.batching.scheduler import Scheduler
from trtllm_pt.batching.speculation import Draft
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request
from trtllm_pt.requests.sequence import Sequence


class PagedScheduler(Scheduler[StepPlan]):
    """Decodes come first, then prompts in order of priority. The last one in that order is preempted first.

    max_num_tokens: the most tokens in a step. num_pages: the number of KV pages of 16 tokens. chunk: the most prompt
    tokens in a step with decoding sequences, so that a long prompt does not stall them; None sets it to
    max_num_tokens. Raises UsageError for limits that contradict each other.
    """

    page_tokens = PAGE

    def __init__(
        self,
        limits: Limits,
        *,
        max_batch_size: int,
        max_num_tokens: int,
        num_pages: int,
        end_id: int = -1,
        chunk: int | None = None,
        draft_tokens: int = 0,
    ) -> None:
        super().__init__(limits, max_batch_size, end_id, draft_tokens)
        self.max_num_tokens = max_num_tokens
        self.chunk = max_num_tokens if chunk is None else chunk
        self._check_limits(num_pages)
        self.pages = PagePool(num_pages)

    @property
    def pages_total(self) -> int:
        return self.pages.total

    @property
    def pages_held(self) -> int:
        return self.pages.held

    def check_integrity(self) -> None:
        super().check_integrity()
        self.pages.check_integrity(s.pages for s in self.running)

    # Checks

    def _check_limits(self, num_pages: int) -> None:
        limits = ("max_batch_size", "max_num_tokens", "chunk")
        for name, value in (*((n, getattr(self, n)) for n in limits), ("num_pages", num_pages)):
            if value < 1:
                raise UsageError(f"{name} ({value}) must be at least 1")
        if self.max_num_tokens < self.max_batch_size:
            raise UsageError(
                f"max_num_tokens ({self.max_num_tokens}) must be at least max_batch_size ({self.max_batch_size}): "
                "a step decodes one token of every sequence"
            )

    def check_request(self, request: Request) -> None:
        super().check_request(request)
        needed = pages_for(self.limits.length(request) - 1)  # the last token is never computed
        if needed > self.pages.total:
            raise UsageError(
                f"prompt and max_tokens together need {needed} KV pages of {PAGE} tokens; "
                f"the engine has {self.pages.total}"
            )

    # Choosing the next step

    def _one_further(self) -> StepPlan | None:
        plan = self._lasting
        if plan is not None and not self._any_draft():
            for row, sequence in enumerate(self.wanted):
                if len(sequence.tokens) > len(plan.pages[row]) * PAGE:
                    return None
                plan.tokens[row] = sequence.tokens[-1]
                plan.starts[row] = sequence.computed
            return plan
        return None

    def _new_plan(self) -> StepPlan | None:
        self._step, self.wanted, self._scored, self._complete, self._lasting = [], [], [], [], None
        self._drafts = {}
        budget = self.max_num_tokens - self._add_decodes()
        if self._step:
            budget = min(budget - self._add_drafts(budget), self.chunk)
        budget = self._add_prompts(budget)
        self._admit(budget)
        assert self._step or not self.waiting, "an idle scheduler can always admit"
        if not self._step:
            return None
        plan = self._plan()
        if len(self.wanted) == len(plan.tokens) == len(self.running):
            self._lasting = plan
        return plan

    def _add_decodes(self) -> int:
        """Add every sequence with one token to compute to the step, and return their number."""
        for sequence in list(self.running):  # in order, so a sequence that is preempted comes later in the list
            if sequence.pages and sequence.known - sequence.computed == 1 and self._has_page(sequence):
                self._step.append((sequence, 1))
        return len(self._step)

    def _any_draft(self) -> bool:
        """Return whether any sequence of a step that only decodes has a draft."""
        return self.speculation is not None and any(len(self._draft(sequence)) for sequence in self.wanted)

    def _draft(self, sequence: Sequence) -> array[int]:
        """Return a draft that fits into the output's length and, if it is not full, into the KV cache."""
        assert self.speculation is not None
        held = len(sequence.pages) + max(0, self.pages.available - len(self.running))
        room = min(sequence.limit - 1, held * PAGE) - sequence.known
        return self.speculation.propose(sequence, len(self.running), max(0, room))

    def _add_drafts(self, budget: int) -> int:
        """Add drafts to the decoding sequences of the step, with pages, and return the number of their tokens."""
        if self.speculation is None:
            return 0
        added = 0
        for sequence, _ in self._step:
            tokens = self._draft(sequence)[: budget - added]
            if tokens:
                self._drafts[sequence.id] = Draft(tokens)
                self.speculation.drafted += len(tokens)
                added += len(tokens)
                while len(sequence.pages) < pages_for(sequence.known + len(tokens)):
                    sequence.pages.append(self.pages.allocate())
        return added

    def _has_page(self, sequence: Sequence) -> bool:
        """Allocate a page for a sequence's newest token if it needs one, preempting the last sequences if necessary.

        Returns False if the sequence itself was preempted.
        """
        if len(sequence.pages) * PAGE >= sequence.known:
            return True
        while not self.pages.available:
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        sequence.pages.append(self.pages.allocate())
        return True

    def _add_prompts(self, budget: int) -> int:
        for sequence in self.running:
            missing = sequence.known - sequence.computed
            if missing > 1 and budget:
                count = min(missing, budget)
                self._step.append((sequence, count))
                budget -= count
        return budget

    def _admit(self, budget: int) -> None:
        while self.waiting and len(self.running) < self.max_batch_size and budget:
            if not self._give_prompt_pages(self.waiting.first):
                break  # later requests do not overtake
            sequence = self._admit_first()
            count = min(sequence.known - sequence.computed, budget)
            self._step.append((sequence, count))
            budget -= count

    def _give_prompt_pages(self, sequence: Sequence) -> bool:
        """Allocate pages for all known tokens of a sequence, reusing the longest cached prefix.

        Returns False if there are not enough. One page is left for every running sequence, because otherwise the new
        sequence would soon be preempted again.
        """
        spare = self.pages.available - len(self.running)
        if spare <= 0:
            return False
        reusable = (sequence.known - 1) // PAGE  # at least one token must be computed
        if sequence.unscored:  # the scores of a prompt's tokens need all earlier tokens computed
            reusable = min(reusable, len(sequence.prompt_scores) // PAGE)
        cached = self.pages.match(page_key(sequence.tokens, page, sequence.salt) for page in range(reusable))
        if pages_for(sequence.known) - len(cached) + self.pages.idle(cached) > spare:
            return False
        self.pages.share(cached)
        sequence.pages = cached
        sequence.registered = len(cached)
        sequence.computed = len(cached) * PAGE
        while len(sequence.pages) < pages_for(sequence.known):
            sequence.pages.append(self.pages.allocate())
        return True

    def _release(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages, sequence.registered, sequence.computed = [], 0, 0

    def _plan(self) -> StepPlan:
        tokens, starts, offsets, pages = array("q"), array("q"), [0], []
        last: list[int] = []
        scored: list[int] = []
        targets = array("q")
        for sequence, count in self._step:
            end = sequence.computed + count
            rows = self._rows_to_score(sequence, end)
            scored += (len(tokens) + row - sequence.computed for row in rows)
            targets += sequence.tokens[rows.start + 1 : rows.stop + 1] if rows else array("q")
            tokens += sequence.tokens[sequence.computed : end]
            newest, draft = len(tokens) - 1, self._drafts.get(sequence.id)
            if draft is not None:
                tokens += draft.tokens
            starts.append(sequence.computed)
            offsets.append(len(tokens))
            pages.append(sequence.pages[: pages_for(end + len(tokens) - 1 - newest)])
            if self._wants_a_token(sequence, end):
                last += range(newest, len(tokens))
        return StepPlan(
            tokens,
            starts,
            offsets,
            last or [len(tokens) - 1],
            pages,
            scored,
            targets,
            self._most_top(),
            self._any_logits(),
        )

    # Results

    def _computed_more(self, sequence: Sequence, count: int) -> None:
        sequence.computed += count
        if sequence.computed >= (sequence.registered + 1) * PAGE:
            self._register_full_pages(sequence)

    def _register_full_pages(self, sequence: Sequence) -> None:
        while sequence.registered < sequence.computed // PAGE:
            index = sequence.registered
            parent = sequence.pages[index - 1] if index else ROOT
            page = self.pages.register(sequence.pages[index], parent, page_key(sequence.tokens, index, sequence.salt))
            sequence.pages[index] = page
            sequence.registered += 1
