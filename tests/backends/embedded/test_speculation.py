"""Drafts change no token: the same requests with and without them, and how many tokens are drafted."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from tests.backends.embedded.fake import VOCAB, FakeModel, alone, drain, joined, make, repeating_logits_of, sequence
from tests.backends.embedded.test_scheduler import log_probs, mixed_requests, request
from trtllm_pt.backends.embedded.paged_scheduler import PagedScheduler
from trtllm_pt.batching.speculation import Draft, Speculation
from trtllm_pt.requests.sequence import Sequence


@pytest.mark.parametrize("draft_tokens", [1, 8, 30])
def test_many_requests_with_few_pages_get_what_they_get_alone(draft_tokens: int) -> None:
    sizes = {"max_batch_size": 16, "max_num_tokens": 64, "num_pages": 24, "draft_tokens": draft_tokens}
    scheduler, model = make(**sizes), FakeModel(24, repeating_logits_of)
    requests = mixed_requests(80)
    for each in requests:
        scheduler.add(each)
    messages = drain(scheduler, model)
    assert scheduler.preemptions > 0 and scheduler.reused_tokens > 0 and model.largest_step <= 64
    assert scheduler.speculation is not None
    assert 0 < scheduler.speculation.accepted < scheduler.speculation.drafted
    for each in requests:
        expected = alone(each, repeating_logits_of)
        assert joined(messages[each.id]) == joined(expected), each.id
        assert log_probs(messages[each.id]) == log_probs(expected)
        assert messages[each.id][-1].finish_reason == expected[-1].finish_reason
    assert scheduler.idle and scheduler.pages.held == 0
    assert {m[-1].finish_reason for m in messages.values()} == {"length", "end_id", "stop_words"}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.4, "seed": 3}, {"repetition_penalty": 1.01}])
def test_accepted_drafts_save_steps(sampling: dict[str, float]) -> None:
    one = request(1, (1, 2, 3), max_tokens=120, **sampling)

    def steps(draft_tokens: int) -> int:
        scheduler = make(draft_tokens=draft_tokens)
        scheduler.add(one)
        assert joined(drain(scheduler, FakeModel(64, repeating_logits_of))[1]) == joined(
            alone(one, repeating_logits_of)
        )
        return scheduler.steps

    assert steps(0) == 120 and steps(8) < 60


def test_a_draft_is_of_one_step_alone() -> None:
    scheduler, model = make(draft_tokens=8), FakeModel(64, repeating_logits_of)
    for prompt in ((1, 2, 3) * 4, (4, 5, 6, 7)):  # the second request has the id of the first, which ends with a draft
        one = request(1, prompt, max_tokens=30)
        scheduler.add(one)
        assert joined(drain(scheduler, model)[1]) == joined(alone(one, repeating_logits_of))


class Alternating:
    """A constraint that allows even and odd tokens in turn, and completes an output after `most` tokens."""

    error = None

    def __init__(self, most: int) -> None:
        self.taken, self.most = 0, most

    def forbidden(self) -> np.ndarray:
        return np.arange(VOCAB) % 2 != self.taken % 2

    def take(self, token: int) -> bool:
        assert token % 2 == self.taken % 2
        self.taken += 1
        return self.taken < self.most


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.4, "seed": 3, "log_probs": True}])
def test_constrained_outputs_are_the_same_with_drafts(sampling: dict[str, float]) -> None:
    """The constraint takes each token of a draft before it says what may follow. Some drafts break the constraint."""
    guides: list[dict[str, str]] = [{}, {"guide_type": "regex", "guide": "the scheduler does not read it"}]
    requests = [request(id, (id, 2, 3), max_tokens=120, **sampling, **guides[id % 2]) for id in range(4)]

    def outputs(draft_tokens: int) -> tuple[PagedScheduler, list[tuple[object, ...]]]:
        scheduler = make(draft_tokens=draft_tokens)
        for one in requests:
            scheduler.add(one, Alternating(100 + one.id) if one.id % 2 else None)
        messages = drain(scheduler, FakeModel(64, repeating_logits_of))
        return scheduler, [
            (joined(messages[one.id]), log_probs(messages[one.id]), messages[one.id][-1].finish_reason)
            for one in requests
        ]

    plain, expected = outputs(0)
    drafting, found = outputs(8)
    assert found == expected
    assert [reason for _, _, reason in found] == ["length", "end_id", "length", "end_id"]
    assert [len(tokens) for tokens, _, _ in found] == [120, 101, 120, 103]
    assert drafting.speculation is not None and drafting.steps < plain.steps
    assert 0 < drafting.speculation.accepted < drafting.speculation.drafted


def test_messages_of_a_step_are_joined() -> None:
    scheduler = make(draft_tokens=8)
    scheduler.add(request(1, (1, 2, 3), max_tokens=120))
    messages = drain(scheduler, FakeModel(64, repeating_logits_of))[1]
    assert len(messages) == scheduler.steps  # one for each step, although some have several tokens
    assert max(len(message.token_ids) for message in messages) > 4


def test_a_draft_ends_with_the_output() -> None:
    scheduler, prompt = make(draft_tokens=8), (1, 2, 3, 4) * 4
    scheduler.add(request(1, prompt, max_tokens=3))
    scheduler.schedule()
    [logits] = np.eye(50, dtype=np.float32)[[1]]
    scheduler.finish_step(([1], [None], [None]))
    plan = scheduler.schedule()
    assert plan is not None and plan.tokens.tolist() == [1, 2]  # a draft of one token, and the last one is sampled
    assert plan.last == [0, 1] and len(logits)


def proposed(tokens: tuple[int, ...], room: int = 100, most: int = 8) -> list[int]:
    return Speculation(most).propose(sequence(tokens), 1, room).tolist()


def test_what_follows_the_latest_occurrence_is_drafted() -> None:
    assert proposed((1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 8, 9, 0, 0, 1, 2, 3)) == [7, 8, 9, 0, 0, 1, 2, 3]
    assert proposed((1, 2, 3, 4, 5, 1, 2, 3), room=2) == [4, 5]
    assert proposed((1, 2, 3, 4, 5, 1, 2, 3), room=0) == []
    assert proposed((5, 5, 5, 5)) == [5] * 8  # a draft goes on with itself
    assert proposed((9, 1, 2, 3, 1, 2, 3)) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert proposed((1, 2, 3, 4, 5, 6)) == proposed((1, 2, 3)) == proposed((1,)) == []


def test_matches_grow_with_the_sequence() -> None:
    speculation, growing = Speculation(4), sequence((1, 2, 3, 4))
    assert not speculation.propose(growing, 1, 100)
    growing.tokens.extend([1, 2, 3])
    assert speculation.propose(growing, 1, 100).tolist() == [4, 1, 2, 3]
    speculation.forget(growing)
    assert speculation.propose(growing, 1, 100).tolist() == [4, 1, 2, 3]


def drafted(rate: float, batch: int, steps: int = 2000, most: int = 8) -> tuple[int, int]:
    """How many tokens are drafted, and how many accepted, if each is right with probability `rate`."""
    speculation, draw = Speculation(most), np.random.default_rng(0)
    one: Sequence = sequence((1, 2, 3) * 5)
    tokens = accepted = 0
    for _ in range(steps):
        draft = Draft(speculation.propose(one, batch, 100))
        while draft.accepted < len(draft.tokens) and draw.random() < rate:
            draft.accepts(draft.tokens[draft.accepted])
        if draft.tokens:
            speculation.learn(one, draft)
        tokens, accepted = tokens + len(draft.tokens), accepted + draft.accepted
    return tokens, accepted


def test_drafts_are_as_long_as_they_are_worth() -> None:
    """A drafted token costs a ninth of a step of one sequence, and 1/24 of a step of 16."""
    tokens, accepted = drafted(rate=0.9, batch=1)
    assert accepted > 2000 * 3 and tokens < 2000 * 8
    never, none = drafted(rate=0.0, batch=1)
    assert none == 0 and never / 9 < 0.08 * 2000  # what they cost, in steps, even if every step has a match
    shared, right = drafted(rate=0.5, batch=16)  # two in three would have to be right
    assert right < shared and shared / 24 - right / 16 < 0.01 * 2000


def test_the_draft_of_a_sequence_is_its_own() -> None:
    speculation = Speculation(4)
    one, other = sequence((1, 2, 3, 1, 2, 3)), sequence((7, 8, 9, 5, 7, 8, 9))
    other.id = 2
    for _ in range(30):
        speculation.learn(one, Draft(array("q", [0] * len(speculation.propose(one, 1, 9)))))
    assert len(speculation.propose(one, 1, 9)) <= 1 < len(speculation.propose(other, 1, 9))
