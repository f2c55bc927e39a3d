"""Batching in slots, driven by a model whose answer shows any mistake in the cache."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.backends.embedded.fake import digest, joined, logits_of, random_prompt
from tests.backends.embedded.test_scheduler import log_probs, mixed_requests, prompt_scores, request
from tests.backends.tensorrt.fake_slots import SLOT, FakeModel, alone, drain, make, step
from trtllm_pt.backends.tensorrt.profiles import DECODE, PREFILL
from trtllm_pt.backends.tensorrt.slot_scheduler import decode_sizes
from trtllm_pt.batching.sampling import score_rows
from trtllm_pt.errors import UsageError


def test_many_requests_get_what_they_get_alone() -> None:
    scheduler, model = make(16), FakeModel(16)
    requests = mixed_requests(100)
    for r in requests:
        scheduler.add(r)
    messages = drain(scheduler, model)
    assert scheduler.reused_tokens > 0
    assert {slots for kind, slots, _ in model.kinds if kind == DECODE} == {1, 2, 4, 8, 16}
    for r in requests:
        expected = alone(r)
        assert joined(messages[r.id]) == joined(expected), r.id
        assert log_probs(messages[r.id]) == log_probs(expected)
        assert prompt_scores(messages[r.id]) == prompt_scores(expected)
        assert messages[r.id][-1].finish_reason == expected[-1].finish_reason
    assert scheduler.idle and scheduler.pages_held == 0
    assert {m[-1].finish_reason for m in messages.values()} == {"length", "end_id", "stop_words"}


def test_arrivals_and_cancellations_in_between_change_nothing_for_the_others() -> None:
    rng = np.random.default_rng(3)
    scheduler, model = make(5), FakeModel(5)
    coming = mixed_requests(80, seed=1)
    cancelled: set[int] = set()
    messages: dict[int, list[object]] = {}
    while coming or not scheduler.idle:
        for r in coming[: int(rng.integers(0, 3))]:
            scheduler.add(r)
            coming.remove(r)
        if rng.random() < 0.1 and scheduler.running:
            victim = scheduler.running[int(rng.integers(len(scheduler.running)))].request.id
            scheduler.cancel(victim)
            cancelled.add(victim)
        for message in step(scheduler, model) or []:
            messages.setdefault(message.id, []).append(message)
    assert len(cancelled) > 5
    for r in mixed_requests(80, seed=1):
        if r.id not in cancelled:
            assert joined(messages[r.id]) == joined(alone(r))  # type: ignore[arg-type]


def test_a_cancellation_while_a_step_runs() -> None:
    scheduler, model = make(2), FakeModel(2)
    prompt = random_prompt(np.random.default_rng(1), 40)
    scheduler.add(request(1, prompt, max_tokens=9))
    plan = scheduler.schedule()
    assert plan is not None
    model.run(plan)
    last = scheduler.cancel(1)
    assert last is not None and last.finish_reason == "cancelled"
    assert scheduler.finish_step(([0], [None], [None])) == []
    assert scheduler.pages_held == 0
    scheduler.add(request(2, prompt, max_tokens=9))
    assert joined(drain(scheduler, model)[2]) == joined(alone(request(2, prompt, max_tokens=9)))
    assert scheduler.reused_tokens == 0, "the cancelled step does not count as computed"


def test_chunks_alternate_with_decode_steps_while_others_decode() -> None:
    scheduler, model = make(chunk=64, chunk_beside=16), FakeModel(4)
    rng = np.random.default_rng(2)
    scheduler.add(request(1, random_prompt(rng, 70), max_tokens=30))
    for _ in range(3):
        step(scheduler, model)
    scheduler.add(request(2, random_prompt(rng, 40), max_tokens=3))
    drain(scheduler, model)
    # Alone a chunk has up to 64 tokens, and the 6 that are left; beside a decoding sequence 16.
    expected = [(PREFILL, 64), (PREFILL, 6), (DECODE, 1), (PREFILL, 16), (DECODE, 1), (PREFILL, 16), (DECODE, 1)]
    assert [(kind, each) for kind, _, each in model.kinds[:7]] == expected
    assert model.kinds[7] == (PREFILL, 1, 8) and model.kinds[8] == (DECODE, 2, 1)


def test_prompts_run_in_order_of_priority_and_arrival() -> None:
    scheduler, model = make(2, chunk=32, chunk_beside=32), FakeModel(2)
    rng = np.random.default_rng(4)
    for id, priority in ((1, 0), (2, 0), (3, 0), (4, -1)):
        scheduler.add(request(id, random_prompt(rng, 64), max_tokens=1, priority=priority))
    finished = []
    while (messages := step(scheduler, model)) is not None:
        finished += [message.id for message in messages]
    assert finished == [4, 1, 2, 3]


def test_a_slot_is_not_reused_with_another_salt() -> None:
    scheduler, model = make(2), FakeModel(2)
    prompt = random_prompt(np.random.default_rng(7), 40)
    cached = []
    for id, salt in enumerate(("", "mine", "mine")):
        scheduler.add(request(id, prompt, max_tokens=2, cache_salt=salt))
        cached.append(drain(scheduler, model)[id][-1].cached_tokens)
    assert cached == [0, 0, 39]


def test_a_conversation_goes_on_in_its_slot() -> None:
    scheduler, model = make(3), FakeModel(3)
    history = random_prompt(np.random.default_rng(5), 50)
    for turn in range(3):
        scheduler.add(request(turn, history, max_tokens=10))
        answer = joined(drain(scheduler, model)[turn])
        assert answer == joined(alone(request(turn, history, max_tokens=10)))
        history = (*history, *answer, 1, 2, 3)
    # The last token of an answer is never computed: 50 + 9, and 63 + 9.
    assert scheduler.reused_tokens == 59 + 72
    assert [scheduler.slots.held(slot) > 0 for slot in range(3)] == [True, False, False]


def test_a_prompt_whose_scores_are_wanted_reuses_nothing() -> None:
    scheduler, model = make(1), FakeModel(1)
    prompt = random_prompt(np.random.default_rng(6), 40)
    for id, scored in enumerate((False, True)):
        scheduler.add(request(id, prompt, max_tokens=2, prompt_log_probs=scored))
        messages = drain(scheduler, model)
    assert scheduler.reused_tokens == 0
    assert len(prompt_scores(messages[1])) == 39


@pytest.mark.parametrize("scored_chunk", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_scores(scored_chunk: int, max_tokens: int) -> None:
    """In chunks of any size and beside others: those of the prompt computed alone."""
    rng = np.random.default_rng(scored_chunk)
    prompts = [random_prompt(rng, length) for length in (1, 2, 3, 17, 40)]
    scheduler, model = make(3, scored_chunk=scored_chunk), FakeModel(3)
    for id, prompt in enumerate(prompts):
        scheduler.add(request(id, prompt, max_tokens=max_tokens, prompt_log_probs=True, top_log_probs=id % 3))
    scheduler.add(request(9, prompts[-1], max_tokens=20))
    messages = drain(scheduler, model)
    for id, prompt in enumerate(prompts):
        assert len(joined(messages[id])) == max_tokens and messages[id][-1].finish_reason == "length"
        assert bool(messages[id][0].prompt_scores) == (len(prompt) > 1), "they come with the first message"
        state, want = 7, []
        for token, following in itertools.pairwise(prompt):
            state = digest(state, token)
            want += score_rows(logits_of(state)[None], [following], id % 3)
        assert prompt_scores(messages[id]) == want


def test_a_step_has_no_more_rows_than_its_chunk() -> None:
    scheduler, model = make(scored_chunk=8), FakeModel(4)
    scheduler.add(request(1, random_prompt(np.random.default_rng(7), 30), max_tokens=1, prompt_log_probs=True))
    seen = []
    while (plan := scheduler.schedule()) is not None:
        seen.append((plan.layout.rows, plan.wanted, len(plan.targets)))
        model.run(plan)
        scheduler.finish_step(([0] * plan.wanted, [None], [None]), model.scores)
    assert seen == [(8, 0, 8), (8, 0, 8), (8, 0, 8), (6, 1, 5)]


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (5, (1, 2, 4, 5)), (16, (1, 2, 4, 8, 16))],
)
def test_decode_sizes(slots: int, sizes: tuple[int, ...]) -> None:
    assert decode_sizes(slots) == sizes


def test_a_plan_that_lasts_is_the_same_object() -> None:
    scheduler, model = make(), FakeModel(4)
    for id in (1, 2):
        scheduler.add(request(id, (id,) * 5, max_tokens=20))
    for _ in range(4):
        step(scheduler, model)
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.finish_step(([1, 1], [None] * 2, [None] * 2))
    assert scheduler.schedule() is plan


def test_requests_refused() -> None:
    scheduler = make()
    with pytest.raises(UsageError, match=r"has 256 tokens and must be shorter than max_seq_len \(256\)"):
        scheduler.add(request(1, (1,) * SLOT))
    scheduler.add(request(1, (1, 2)))
    with pytest.raises(UsageError, match=r"id \(1\) belongs to a request that is still in flight"):
        scheduler.add(request(1, (1, 2)))


def test_an_output_ends_with_its_slot() -> None:
    scheduler, model = make(1), FakeModel(1)
    scheduler.add(request(1, random_prompt(np.random.default_rng(8), SLOT - 3), max_tokens=99))
    assert len(joined(drain(scheduler, model)[1])) == 3
    assert scheduler.slots.held(0) == SLOT - 1
