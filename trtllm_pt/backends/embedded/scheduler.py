"""In-flight batching: choose the tokens of the requests that run in the next step. Runs on rank 0 only.

The choice depends only on the order of arrival. A step of the runtime is:

    plan = scheduler.schedule()
    if plan is None:
        return []                                              # idle
    logits = session.run(plan)                                 # on all ranks
    sampled = sample(logits, scheduler.wanted)
    return scheduler.finish_step(sampled, session.scores)
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as SequenceOf

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.kv_pages import ROOT, PagePool, page_key, pages_for
from trtllm_pt.backends.embedded.step_plan import StepPlan
from trtllm_pt.batching.sampling import Sampled
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import FinishReason, Request, Tokens, TokenScore
from trtllm_pt.requests.sequence import Sequence


class Scheduler:
    """The running sequences and the queue. Requests run in order of arrival, and the latest is preempted first.

    max_batch_size: the most sequences that run at a time. max_num_tokens: the most tokens in a step. num_pages: the
    number of KV pages of 16 tokens. chunk: the most prompt tokens in a step with decoding sequences, so that a long
    prompt does not stall them; None sets it to max_num_tokens. end_id: the end token of requests that name none, or -1.
    Raises UsageError for limits that contradict each other.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        max_batch_size: int,
        max_num_tokens: int,
        num_pages: int,
        end_id: int = -1,
        chunk: int | None = None,
    ) -> None:
        self.limits = limits
        self.max_batch_size = max_batch_size
        self.max_num_tokens = max_num_tokens
        self.end_id = end_id
        self.chunk = max_num_tokens if chunk is None else chunk
        self._check_limits(num_pages)

        self.pages = PagePool(num_pages)
        self.running: list[Sequence] = []  # in order of arrival
        self.waiting: deque[Sequence] = deque()  # in order of arrival, all later than the running ones
        self.wanted: list[Sequence] = []  # the sequences that get a token in this step, in the order of plan.last
        self._scored: list[tuple[Sequence, int]] = []  # the sequences of plan.scored, with the number of their rows
        self._complete: list[Sequence] = []  # the sequences that want no token, and whose prompts this step completes
        self.steps = 0
        self.preemptions = 0
        self.prompt_tokens = 0  # of all accepted requests
        self.reused_tokens = 0  # prompt tokens found in the KV cache when a request was admitted
        self.output_tokens = 0  # sampled tokens, including end tokens and stop words

        self._by_id: dict[int, Sequence] = {}
        self._step: list[tuple[Sequence, int]] = []  # the sequences of the last step, with the number of their tokens
        self._in_flight = False
        self._lasting: StepPlan | None = None  # the last plan, if the next step can be the same, one token further

    def add(self, request: Request) -> None:
        """Queue a request whose tokens and sampling fields the caller has checked (Limits.check).

        Raises UsageError for an id that is in flight, and for lengths that the engine cannot take.
        """
        self._check_request(request)
        sequence = Sequence.start(request, self.limits.length(request), self.end_id)
        self._by_id[request.id] = sequence
        self._lasting = None
        self.waiting.append(sequence)
        self.prompt_tokens += len(request.token_ids)

    def cancel(self, request_id: int, reason: FinishReason = "cancelled", error: str | None = None) -> Tokens | None:
        """Finish a request and free its pages now, even while a step runs.

        Returns the request's last message, or None if it is not waiting or running.
        """
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return None
        return self._finish(sequence, reason, error)

    def schedule(self) -> StepPlan | None:
        """Return the next step, or None if there is no request: decodes first, then prompts in order of arrival.

        Call `finish_step` once after each step. The next call may overwrite the plan.
        """
        assert not self._in_flight, "the last step was not finished"
        plan = self._one_further() or self._new_plan()
        self._in_flight = plan is not None
        return plan

    def _one_further(self) -> StepPlan | None:
        """Return the last plan, updated to the tokens it produced, if the same sequences only decode further.

        This is the case for most steps: no request has arrived or finished, and no sequence needs another page.
        """
        plan = self._lasting
        if plan is not None:
            for row, sequence in enumerate(self.wanted):
                if len(sequence.tokens) > len(sequence.pages) * PAGE:
                    return None
                plan.tokens[row] = sequence.tokens[-1]
                plan.starts[row] = sequence.computed
        return plan

    def _new_plan(self) -> StepPlan | None:
        self._step, self.wanted, self._scored, self._complete, self._lasting = [], [], [], [], None
        budget = self.max_num_tokens - self._add_decodes()
        if self._step:
            budget = min(budget, self.chunk)
        budget = self._add_prompts(budget)
        self._admit(budget)
        assert self._step or not self.waiting, "an idle scheduler can always admit"
        if not self._step:
            return None
        plan = self._plan()
        if len(self.wanted) == len(plan.tokens) == len(self.running):
            self._lasting = plan
        return plan

    def finish_step(self, sampled: Sampled, scores: SequenceOf[TokenScore] = ()) -> list[Tokens]:
        """Record a step's results and return the messages to send.

        sampled: one token for each of `wanted`. scores: those of the plan's scored rows.
        """
        self._take_prompt_scores(scores)
        for sequence, count in self._step:
            if sequence.finish_reason is None:  # otherwise the request was cancelled while the step ran
                sequence.computed += count
                if sequence.computed >= (sequence.registered + 1) * PAGE:
                    self._register_full_pages(sequence)
        messages = [self._finish(sequence, "length") for sequence in self._complete if sequence.finish_reason is None]
        tokens, own_scores, errors = sampled
        for row, sequence in enumerate(self.wanted):
            if sequence.finish_reason is None:
                message = self._take(sequence, tokens[row], own_scores[row], errors[row])
                if message is not None:
                    messages.append(message)
        self.steps += 1
        self._in_flight = False
        return messages

    @property
    def idle(self) -> bool:
        """Whether no request is running or waiting."""
        return not self._by_id

    def check_integrity(self) -> None:
        """Assert that pages and queues are consistent."""
        self.pages.check_integrity(s.pages for s in self.running)
        assert len(self.running) <= self.max_batch_size and all(s.pages for s in self.running)
        assert {id(s) for s in self._by_id.values()} == {id(s) for s in (*self.running, *self.waiting)}
        assert not any(s.pages or s.computed for s in self.waiting)

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

    def _check_request(self, request: Request) -> None:
        self.limits.check_queued(request, self._by_id)
        needed = pages_for(self.limits.length(request) - 1)  # the last token is never computed
        if needed > self.pages.total:
            raise UsageError(
                f"prompt and max_tokens together need {needed} KV pages of {PAGE} tokens; "
                f"the engine has {self.pages.total}"
            )

    # Choosing the next step

    def _add_decodes(self) -> int:
        """Add every sequence with one token to compute to the step, and return their number."""
        for sequence in list(self.running):  # oldest first, so a sequence that is preempted comes later in the list
            if sequence.pages and sequence.known - sequence.computed == 1 and self._has_page(sequence):
                self._step.append((sequence, 1))
        return len(self._step)

    def _has_page(self, sequence: Sequence) -> bool:
        """Allocate a page for a sequence's newest token if it needs one, preempting the latest sequences if necessary.

        Returns False if the sequence itself was preempted.
        """
        if len(sequence.pages) * PAGE >= sequence.known:
            return True
        while not self.pages.available:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
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
            sequence = self.waiting[0]
            if not self._give_prompt_pages(sequence):
                break  # later requests do not overtake
            self.running.append(self.waiting.popleft())
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
        cached = self.pages.match(page_key(sequence.tokens, page) for page in range(reusable))
        if pages_for(sequence.known) - len(cached) + self.pages.idle(cached) > spare:
            return False
        self.pages.share(cached)
        sequence.pages = cached
        sequence.registered = len(cached)
        sequence.computed = len(cached) * PAGE
        self.reused_tokens += sequence.computed
        while len(sequence.pages) < pages_for(sequence.known):
            sequence.pages.append(self.pages.allocate())
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Move a sequence back to the head of the queue. Its tokens are kept and will be computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages, sequence.registered, sequence.computed = [], 0, 0

    def _plan(self) -> StepPlan:
        tokens, starts, offsets, last, pages = array("q"), array("q"), [0], [], []
        scored: list[int] = []
        targets = array("q")
        for sequence, count in self._step:
            end = sequence.computed + count
            if sequence.unscored:
                rows = range(max(sequence.computed, len(sequence.prompt_scores)), min(end, len(sequence.prompt) - 1))
                scored += (len(tokens) + row - sequence.computed for row in rows)
                targets += sequence.tokens[rows.start + 1 : rows.stop + 1]
                self._scored.append((sequence, len(rows)))
            tokens += sequence.tokens[sequence.computed : end]
            starts.append(sequence.computed)
            offsets.append(len(tokens))
            pages.append(sequence.pages[: pages_for(end)])
            if end == sequence.limit:
                self._complete.append(sequence)
            elif end == sequence.known:
                self.wanted.append(sequence)
                last.append(len(tokens) - 1)
        top = max((sequence.sampling.top_log_probs for sequence, _ in self._scored), default=0)
        return StepPlan(tokens, starts, offsets, last or [len(tokens) - 1], pages, scored, targets, top)

    # Results

    def _register_full_pages(self, sequence: Sequence) -> None:
        while sequence.registered < sequence.computed // PAGE:
            index = sequence.registered
            parent = sequence.pages[index - 1] if index else ROOT
            page = self.pages.register(sequence.pages[index], parent, page_key(sequence.tokens, index))
            sequence.pages[index] = page
            sequence.registered += 1

    def _take_prompt_scores(self, scores: SequenceOf[TokenScore]) -> None:
        done = 0
        for sequence, count in self._scored:
            own, top = scores[done : done + count], sequence.sampling.top_log_probs
            sequence.take_prompt_scores(TokenScore(score.log_prob, score.top[:top]) for score in own)
            done += count

    def _take(self, sequence: Sequence, token: int, score: TokenScore | None, error: str | None) -> Tokens | None:
        """Add a sampled token to a sequence, and return the message that follows from it, if any."""
        if error is not None:
            return self._finish(sequence, "error", error)
        self.output_tokens += 1
        reason = sequence.take(token, score)
        return sequence.send() if reason is None else self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> Tokens:
        """Finish a request, free its pages and return its last message."""
        self._lasting = None
        del self._by_id[sequence.request.id]
        if sequence.pages:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
        return sequence.end(reason, error)
