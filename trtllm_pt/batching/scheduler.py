"""In-flight batching: the requests of an engine, from the queue to their last message. Runs on rank 0 only.

A subclass chooses the tokens of the next step and gives out the memory of the KV cache. Its choice depends only on
priorities and the order of arrival. A step of the runtime is:

    plan = scheduler.schedule()
    if plan is None:
        return []                                              # idle
    logits = session.run(plan)                                 # on all ranks
    sampled = sample(scheduler.rows(logits), scheduler.wanted, score)
    messages = scheduler.finish_step(sampled, session.scores)
    while scheduler.agreed:                                    # drafts that are right so far
        sampled = sample(scheduler.rows(logits), scheduler.agreed, score)
        messages += scheduler.go_on(sampled)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Sequence as SequenceOf
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from trtllm_pt.batching.sampling import Sampled
from trtllm_pt.batching.speculation import Draft, Speculation
from trtllm_pt.batching.waiting import Waiting
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import FinishReason, Request, Tokens, TokenScore
from trtllm_pt.requests.sequence import Constraint, Sequence

Plan = TypeVar("Plan")


class Scheduler(ABC, Generic[Plan]):
    """The running sequences and the queue. Requests run in order of priority.

    That is the order of the field `priority`, and among equals the order of arrival. A request never takes the place of
    one that runs, unless both need the last pages of the KV cache.

    max_batch_size: the most sequences that run at a time. end_id: the end token of requests that name none, or -1.
    draft_tokens: the most tokens of a draft; 0: no drafts.
    """

    def __init__(self, limits: Limits, max_batch_size: int, end_id: int = -1, draft_tokens: int = 0) -> None:
        self.limits = limits
        self.max_batch_size = max_batch_size
        self.end_id = end_id
        self.running: list[Sequence] = []  # in order of priority; each holds pages of the KV cache
        self.waiting = Waiting()
        self.wanted: list[Sequence] = []  # the sequences that get a token in this step, in the order of their logits
        self.agreed: list[Sequence] = []  # those of them whose token was that of their draft, and that get another one
        self.speculation = Speculation(draft_tokens) if draft_tokens else None
        self._drafts: dict[int, Draft] = {}  # of this step, by the id of the sequence
        self._scored: list[tuple[Sequence, int]] = []  # the sequences of scored rows, with the number of their rows
        self._complete: list[Sequence] = []  # the sequences that want no token, and whose prompts this step completes
        self.steps = 0
        self.preemptions = 0
        self.prompt_tokens = 0  # of all accepted requests
        self.reused_tokens = 0  # prompt tokens found in the KV cache when a request was admitted
        self.output_tokens = 0  # sampled tokens, including end tokens and stop words

        self._by_id: dict[int, Sequence] = {}
        self._arrivals = 0
        self._step: list[tuple[Sequence, int]] = []  # the sequences of the last step, with the number of their tokens
        self._in_flight = False
        self._lasting: Plan | None = None  # the last plan, if the next step can be the same, one token further

    # What a subclass decides

    page_tokens: int  # tokens per page of the KV cache

    @property
    @abstractmethod
    def pages_total(self) -> int:
        """The number of pages of the KV cache."""

    @property
    @abstractmethod
    def pages_held(self) -> int:
        """The number of pages that sequences hold."""

    @abstractmethod
    def _one_further(self) -> Plan | None:
        """Return the last plan, updated to the tokens it produced, if the same sequences only decode further.

        This is the case for most steps: no request has arrived or finished, and there is room for every token.
        """

    @abstractmethod
    def _new_plan(self) -> Plan | None:
        """Return the next step, or None if there is no request.

        Sets the fields `wanted`, `_step`, `_scored`, `_complete` and `_lasting`.
        """

    @abstractmethod
    def _release(self, sequence: Sequence) -> None:
        """Give the pages of a sequence back."""

    def _computed_more(self, sequence: Sequence, count: int) -> None:
        """Note that the KV cache has `count` more tokens of a sequence."""
        sequence.computed += count

    # Requests

    def add(self, request: Request, constraint: Constraint | None = None) -> None:
        """Queue a request whose tokens and sampling fields the caller has checked (Limits.check).

        constraint: of a request with a guide. Raises UsageError for an id that is in flight, and for lengths that the
        engine cannot take.
        """
        self.check_request(request)
        sequence = Sequence.start(request, self.limits.length(request), self.end_id, constraint)
        sequence.place = (request.sampling.priority, self._arrivals)
        self._arrivals += 1
        self._by_id[request.id] = sequence
        self._lasting = None
        self.waiting.add(sequence)
        self.prompt_tokens += len(request.token_ids)

    def cancel(self, request_id: int, reason: FinishReason = "cancelled", error: str | None = None) -> Tokens | None:
        """Finish a request and free its pages now, even while a step runs.

        Returns the request's last message, or None if it is not waiting or running.
        """
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return None
        return self._finish(sequence, reason, error)

    def _admit_first(self) -> Sequence:
        """Move the first waiting sequence, which has got its pages, to the running ones."""
        sequence = self.waiting.take_first()
        insort(self.running, sequence, key=_place)
        self.reused_tokens += sequence.computed
        if sequence.cached is None:
            sequence.cached = sequence.computed
        return sequence

    def _preempt(self, sequence: Sequence) -> None:
        """Move a running sequence back to its place in the queue. Its tokens are kept and will be computed again."""
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.add(sequence)
        self.preemptions += 1

    @property
    def idle(self) -> bool:
        """Whether no request is running or waiting."""
        return not self._by_id

    def check_integrity(self) -> None:
        """Assert that pages and queues are consistent."""
        assert len(self.running) <= self.max_batch_size and all(s.pages for s in self.running)
        assert {id(s) for s in self._by_id.values()} == {id(s) for s in (*self.running, *self.waiting)}
        assert not any(s.pages or s.computed for s in self.waiting)

    def check_request(self, request: Request) -> None:
        """Raises UsageError as `add` does."""
        self.limits.check_queued(request, self._by_id)

    # Steps

    def schedule(self) -> Plan | None:
        """Return the next step, or None if there is no request.

        Call `finish_step` once after each step. The next call may overwrite the plan.
        """
        assert not self._in_flight, "the last step was not finished"
        plan = self._one_further() or self._new_plan()
        self._in_flight = plan is not None
        return plan

    def finish_step(self, sampled: Sampled, scores: SequenceOf[TokenScore] = ()) -> list[Tokens]:
        """Record a step's results and return the messages to send.

        sampled: one token for each of `wanted`. scores: those of the plan's scored rows.
        """
        self._take_prompt_scores(scores)
        for sequence, count in self._step:
            if sequence.finish_reason is None:  # otherwise the request was cancelled while the step ran
                self._computed_more(sequence, count)
        messages = [self._finish(sequence, "length") for sequence in self._complete if sequence.finish_reason is None]
        self.steps += 1
        self._in_flight = False
        return messages + self._take_all(self.wanted, sampled)

    def rows(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the rows of a step's logits from which `agreed`, or else `wanted`, get their next tokens."""
        if not self._drafts:
            return logits
        if self.agreed:
            return logits[[self._drafts[sequence.id].next_row for sequence in self.agreed]]
        return logits[self._first_rows()]

    def go_on(self, sampled: Sampled) -> list[Tokens]:
        """Record one more token for each of `agreed`, and return the messages to send."""
        return self._take_all(self.agreed, sampled)

    def _first_rows(self) -> list[int]:
        """Return the first row of logits of each wanted sequence, and tell the drafts theirs."""
        rows, row = [], 0
        for sequence in self.wanted:
            rows.append(row)
            if (draft := self._drafts.get(sequence.id)) is not None:
                draft.row = row
                row += len(draft.tokens)
            row += 1
        return rows

    def _take_all(self, sequences: SequenceOf[Sequence], sampled: Sampled) -> list[Tokens]:
        messages, self.agreed = [], []
        tokens, own_scores, errors = sampled
        for row, sequence in enumerate(sequences):
            if sequence.finish_reason is None:  # otherwise the request was cancelled while the step ran
                message = self._take(sequence, tokens[row], own_scores[row], errors[row])
                if message is not None:
                    messages.append(message)
        return messages

    def _rows_to_score(self, sequence: Sequence, end: int) -> range:
        """Note and return the tokens of a sequence, up to `end`, whose log-probs this step is to compute: those of
        prompt tokens that have a successor in the prompt, and whose score was requested and is not known."""
        if not sequence.unscored:
            return range(0)
        rows = range(max(sequence.computed, len(sequence.prompt_scores)), min(end, len(sequence.prompt) - 1))
        self._scored.append((sequence, len(rows)))
        return rows

    def _wants_a_token(self, sequence: Sequence, end: int) -> bool:
        """Note and return whether a step that computes a sequence up to `end` is to sample its next token."""
        if end == sequence.limit:
            self._complete.append(sequence)
            return False
        if end == sequence.known:
            self.wanted.append(sequence)
            return True
        return False

    def _most_top(self) -> int:
        """Return the most likeliest tokens that a scored sequence wants beside each log-prob."""
        return max((sequence.sampling.top_log_probs for sequence, _ in self._scored), default=0)

    def _any_logits(self) -> bool:
        """Return whether a scored sequence wants whole rows of logits."""
        return any(sequence.sampling.context_logits for sequence, _ in self._scored)

    def _take_prompt_scores(self, scores: SequenceOf[TokenScore]) -> None:
        done = 0
        for sequence, count in self._scored:
            own, top = scores[done : done + count], sequence.sampling.top_log_probs
            whole = sequence.sampling.context_logits
            sequence.take_prompt_scores(
                TokenScore(score.log_prob, score.top[:top], score.logits if whole else b"") for score in own
            )
            done += count

    def _take(self, sequence: Sequence, token: int, score: TokenScore | None, error: str | None) -> Tokens | None:
        """Add a sampled token to a sequence, and return the message that follows from it, if any."""
        if error is not None:
            return self._finish(sequence, "error", error)
        self.output_tokens += 1
        reason = sequence.take(token, score)
        if reason is None and self._drafts and self._accepts(sequence, token):
            self.agreed.append(sequence)
            return None
        return sequence.send() if reason is None else self._finish(sequence, reason)

    def _accepts(self, sequence: Sequence, token: int) -> bool:
        """Return whether a token is the next one of its sequence's draft, so that the step has computed it."""
        draft = self._drafts.get(sequence.id)
        if draft is None:
            return False
        assert self.speculation is not None
        if draft.accepts(token):
            self.speculation.accepted += 1
            self._computed_more(sequence, 1)
            return True
        self.speculation.learn(sequence, draft)
        return False

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> Tokens:
        """Finish a request, free its pages and return its last message."""
        self._lasting = None
        if self.speculation is not None:
            self.speculation.forget(sequence)
        del self._by_id[sequence.request.id]
        if sequence.pages:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)
        return sequence.end(reason, error)


def _place(sequence: Sequence) -> tuple[int, int]:
    return sequence.place
