"""In-flight batching driven by a model whose answer shows any mistake in the cache."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from tests.backends.embedded.fake import (
    VOCAB,
    FakeModel,
    alone,
    digest,
    drain,
    joined,
    logits_of,
    make,
    random_prompt,
    step,
)
from trtllm_pt.backends.embedded.scores import score
from trtllm_pt.backends.embedded.step_plan import StepPlan
from trtllm_pt.batching.sampling import sample
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import Request, SamplingParams, Tokens, TokenScore


def request(id: int, prompt: tuple[int, ...], **sampling: object) -> Request:
    return Request(id=id, token_ids=prompt, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]


def mixed_requests(count: int, seed: int = 0) -> list[Request]:
    """Lengths, sampling and shared prefixes of all kinds."""
    rng = np.random.default_rng(seed)
    prefixes = [random_prompt(rng, 48) for _ in range(3)]
    kinds: list[dict[str, object]] = [
        {},
        {"temperature": 1.0, "log_probs": True, "top_log_probs": 2},
        {"temperature": 0.7, "top_k": 8, "repetition_penalty": 1.3},
        {"temperature": 1.2, "top_p": 0.8, "min_p": 0.02, "frequency_penalty": 0.4, "prompt_log_probs": True},
        {"stop_words": ((3, 4), (7,)), "end_id": 5, "min_tokens": 4, "bad_words": ((9,), (1, 2))},
    ]
    requests = []
    for id in range(count):
        shared = prefixes[id % 3][: int(rng.integers(0, 49))] if id % 2 else ()
        prompt = shared + random_prompt(rng, int(rng.integers(1, 90)))
        sampling = {"max_tokens": int(rng.integers(1, 60)), "seed": id, **kinds[id % len(kinds)]}
        if "min_tokens" in sampling:
            sampling["max_tokens"] = max(4, int(sampling["max_tokens"]))  # type: ignore[call-overload]
        requests.append(request(id, prompt, **sampling))
    return requests


def log_probs(messages: list[object]) -> tuple[float, ...]:
    return tuple(p for m in messages for p in m.log_probs)  # type: ignore[attr-defined]


def test_many_requests_with_few_pages_get_what_they_get_alone() -> None:
    scheduler, model = make(max_batch_size=16, max_num_tokens=64, num_pages=40), FakeModel(40)
    requests = mixed_requests(200)
    for r in requests:
        scheduler.add(r)
    messages = drain(scheduler, model)
    assert scheduler.preemptions > 0 and scheduler.reused_tokens > 0
    assert 16 < model.largest_step <= 64
    for r in requests:
        expected = alone(r)
        assert joined(messages[r.id]) == joined(expected), r.id
        assert log_probs(messages[r.id]) == log_probs(expected)
        assert messages[r.id][-1].finish_reason == expected[-1].finish_reason
    assert scheduler.idle and scheduler.pages.held == 0
    assert {m[-1].finish_reason for m in messages.values()} == {"length", "end_id", "stop_words"}


def test_outputs_that_outgrow_the_pages_are_preempted_again_and_again() -> None:
    rng = np.random.default_rng(6)
    scheduler, model = make(max_batch_size=16, max_num_tokens=48, num_pages=32), FakeModel(32)
    requests = []
    for id in range(60):
        prompt = random_prompt(rng, int(rng.integers(1, 20)))
        requests.append(request(id, prompt, max_tokens=int(rng.integers(60, 150)), temperature=id % 3 / 2, seed=id))
    for r in requests:
        scheduler.add(r)
    messages = drain(scheduler, model, check=False)
    scheduler.check_integrity()
    assert scheduler.preemptions > 30
    for r in requests:
        assert joined(messages[r.id]) == joined(alone(r)), r.id
    assert scheduler.idle and scheduler.pages.held == 0


def test_arrivals_and_cancellations_in_between_change_nothing_for_the_others() -> None:
    rng = np.random.default_rng(3)
    scheduler, model = make(max_batch_size=8, max_num_tokens=24, num_pages=30), FakeModel(30)
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


def test_two_runs_make_the_same_plans() -> None:
    def plans() -> list[StepPlan]:
        scheduler, model = make(max_batch_size=8, num_pages=30), FakeModel(30)
        for r in mixed_requests(30):
            scheduler.add(r)
        seen = []
        while (plan := scheduler.schedule()) is not None:
            seen.append(copy.deepcopy(plan))
            scheduler.finish_step(sample(model.run(plan), scheduler.wanted), model.scores)
        return seen

    assert plans() == plans()


@pytest.mark.parametrize("budget", [4, 5, 7, 15, 16, 17, 33, 100])
def test_chunks_of_any_size(budget: int) -> None:
    r = request(1, random_prompt(np.random.default_rng(1), 99), max_tokens=5)
    scheduler, model = make(max_num_tokens=budget), FakeModel(64)
    scheduler.add(r)
    plan = scheduler.schedule()
    assert plan is not None and len(plan.tokens) == min(budget, 99) and len(plan.last) == 1
    assert len(scheduler.wanted) == (budget >= 99)  # else the row is asked for only because a graph needs one
    scheduler.finish_step(sample(model.run(plan), scheduler.wanted), model.scores)
    assert joined(drain(scheduler, model)[1] if budget < 99 else alone(r)) == joined(alone(r))
    assert model.largest_step == min(budget, 99)


def test_a_long_prompt_does_not_stall_a_stream() -> None:
    scheduler, model = make(chunk=8), FakeModel(64)
    scheduler.add(request(1, (1, 2), max_tokens=40))
    assert [m.id for m in step(scheduler, model) or []] == [1]
    scheduler.add(request(2, random_prompt(np.random.default_rng(2), 100), max_tokens=2))
    for _ in range(12):
        plan = scheduler.schedule()
        assert plan is not None and len(plan.tokens) == 1 + 8 and plan.starts[0] > 0
        assert [s.request.id for s in scheduler.wanted] == [1]
        assert [m.id for m in scheduler.finish_step(sample(model.run(plan), scheduler.wanted), model.scores)] == [1]
    assert [m.id for m in step(scheduler, model) or []] == [1, 2]


def test_decodes_come_first_then_prompts_in_order_of_arrival() -> None:
    scheduler, model = make(max_num_tokens=10), FakeModel(64)
    scheduler.add(request(1, (1, 2, 3), max_tokens=9))
    step(scheduler, model)
    for id in (2, 3, 4):
        scheduler.add(request(id, (id,) * 6, max_tokens=9))
    plan = scheduler.schedule()
    assert plan is not None and np.diff(plan.offsets).tolist() == [1, 6, 3]
    assert plan.tokens[1:].tolist() == [2] * 6 + [3] * 3
    assert [s.request.id for s in scheduler.wanted] == [1, 2] and plan.last == [0, 6]


def test_the_lowest_priority_number_runs_first_then_the_first_to_arrive() -> None:
    scheduler, model = make(max_batch_size=2), FakeModel(64)
    for id, priority in enumerate((0, 0, 5, 0, -1, -1)):
        scheduler.add(request(id, (id,), max_tokens=4, priority=priority))
    began = list(drain(scheduler, model))
    assert began == [4, 5, 0, 1, 3, 2]
    for id in began:
        assert joined(alone(request(id, (id,), max_tokens=4, priority=7))) == joined(
            alone(request(id, (id,), max_tokens=4))
        )


def test_a_request_that_runs_goes_on_beside_a_more_urgent_one_until_pages_run_out() -> None:
    scheduler, model = make(max_batch_size=2, num_pages=6), FakeModel(6)
    requests = {
        id: request(id, random_prompt(np.random.default_rng(id), 30), max_tokens=40, priority=-id) for id in (1, 2)
    }
    scheduler.add(requests[1])
    messages = step(scheduler, model) or []
    scheduler.add(requests[2])
    while len(scheduler.running) < 2:
        messages += step(scheduler, model) or []
    while (new := step(scheduler, model)) is not None:
        messages += new
    assert scheduler.preemptions == 1
    assert [message.id for message in messages if message.finish_reason] == [2, 1]
    for id, own in requests.items():
        assert joined([message for message in messages if message.id == id]) == joined(alone(own))


def test_the_batch_is_bounded() -> None:
    scheduler, model = make(max_batch_size=2), FakeModel(64)
    for id in range(5):
        scheduler.add(request(id, (1, id), max_tokens=3))
    step(scheduler, model)
    assert len(scheduler.running) == 2 and len(scheduler.waiting) == 3
    assert sorted(drain(scheduler, model)) == [0, 1, 2, 3, 4]


def test_the_youngest_is_preempted_and_goes_to_the_head_of_the_queue() -> None:
    scheduler, model = make(num_pages=4, max_batch_size=2), FakeModel(4)
    old, young = request(1, (1,) * 15, max_tokens=40), request(2, (2,) * 15, max_tokens=40)
    for r in (old, young, request(3, (3,), max_tokens=1)):
        scheduler.add(r)
    messages: dict[int, list[object]] = {}
    while not scheduler.preemptions:
        for m in step(scheduler, model) or []:
            messages.setdefault(m.id, []).append(m)
    assert [s.request.id for s in scheduler.running] == [1]
    assert [s.request.id for s in scheduler.waiting] == [2, 3]
    for id, rest in drain(scheduler, model).items():
        messages.setdefault(id, []).extend(rest)
    assert joined(messages[1]) == joined(alone(old)) and joined(messages[2]) == joined(alone(young))  # type: ignore[arg-type]


def test_a_newcomer_leaves_a_page_for_every_running_sequence() -> None:
    scheduler, model = make(num_pages=4), FakeModel(4)
    scheduler.add(request(1, (1,) * 20, max_tokens=20))
    step(scheduler, model)
    scheduler.add(request(2, (2,) * 20, max_tokens=3))  # its two pages are there, but the first would soon lack one
    step(scheduler, model)
    assert len(scheduler.running) == 1 and scheduler.pages.available == 2
    drain(scheduler, model)
    assert scheduler.preemptions == 0


def test_a_plan_names_only_the_pages_in_use() -> None:
    scheduler = make(max_num_tokens=20)
    scheduler.add(request(1, (1,) * 100))  # holds seven pages, needs two in this step
    plan = scheduler.schedule()
    assert plan is not None and len(scheduler.running[0].pages) == 7
    assert plan.pages == [scheduler.running[0].pages[:2]]


def test_a_prompt_seen_before_is_reused_but_for_its_last_token() -> None:
    prompt = random_prompt(np.random.default_rng(4), 48)
    scheduler, model = make(max_num_tokens=64), FakeModel(64)
    for id, reused in ((1, 0), (2, 32), (3, 32)):  # 48 tokens are 3 full pages; the last token must be computed
        before = scheduler.reused_tokens
        scheduler.add(request(id, prompt, max_tokens=3))
        plan = scheduler.schedule()
        assert plan is not None and plan.starts[0] == reused and len(plan.tokens) == 48 - reused
        first = scheduler.finish_step(sample(model.run(plan), scheduler.wanted), model.scores)
        rest = drain(scheduler, model)[id]
        assert joined(first + rest) == joined(alone(request(id, prompt, max_tokens=3)))
        assert scheduler.reused_tokens - before == reused


def test_a_prefix_is_shared_only_with_the_same_salt() -> None:
    prompt = random_prompt(np.random.default_rng(4), 50)
    scheduler, model = make(), FakeModel(64)
    cached = []
    for id, salt in enumerate(("", "a", "a", "b", "", "\0")):
        scheduler.add(request(id, prompt, max_tokens=3, cache_salt=salt))
        messages = drain(scheduler, model)[id]
        assert joined(messages) == joined(alone(request(id, prompt, max_tokens=3)))
        assert len({message.cached_tokens for message in messages}) == 1
        cached.append(messages[0].cached_tokens)
    assert cached == [0, 0, 48, 0, 48, 0]
    assert scheduler.reused_tokens == sum(cached)


def test_a_preempted_request_keeps_the_number_of_its_cached_tokens() -> None:
    """Its own pages, which it finds again, are not those that it was spared."""
    scheduler, model = make(max_batch_size=2, num_pages=6), FakeModel(6)
    for id in (1, 2):
        scheduler.add(request(id, random_prompt(np.random.default_rng(id), 30), max_tokens=40))
    messages = drain(scheduler, model)
    assert scheduler.preemptions and scheduler.reused_tokens
    assert {message.cached_tokens for own in messages.values() for message in own} == {0}


def test_the_next_turn_of_a_dialogue_reuses_the_output_too() -> None:
    prompt = random_prompt(np.random.default_rng(4), 40)
    scheduler, model = make(max_num_tokens=64), FakeModel(64)
    scheduler.add(request(1, prompt, max_tokens=30))
    output = joined(drain(scheduler, model)[1])
    turn = request(2, prompt + output + (1, 2, 3), max_tokens=6)
    scheduler.add(turn)
    assert joined(drain(scheduler, model)[2]) == joined(alone(turn))
    assert scheduler.reused_tokens == 64  # 69 of the 70 tokens were computed: 4 full pages


def test_equal_prompts_at_the_same_time_end_up_on_the_same_pages() -> None:
    scheduler, model = make(max_num_tokens=128), FakeModel(64)
    for id in (1, 2):
        scheduler.add(request(id, (7,) * 40, max_tokens=4))
    step(scheduler, model)
    a, b = scheduler.running
    assert a.pages[:2] == b.pages[:2] and a.pages[2] != b.pages[2]
    messages = drain(scheduler, model)
    assert [m.token_ids for m in messages[1]] == [m.token_ids for m in messages[2]]


def test_cancel_frees_at_once() -> None:
    scheduler, model = make(max_batch_size=2), FakeModel(64)
    for id in (1, 2, 3):
        scheduler.add(request(id, (id,) * 20, max_tokens=30))
    step(scheduler, model)
    for id in (1, 3, 2):  # running, waiting, running
        last = scheduler.cancel(id)
        assert last is not None and (last.id, last.finish_reason) == (id, "cancelled")
        scheduler.check_integrity()
        assert scheduler.cancel(id) is None
    assert scheduler.idle and scheduler.pages.held == 0 and scheduler.schedule() is None
    assert scheduler.cancel(99) is None


def test_cancel_while_the_step_runs() -> None:
    scheduler, model = make(), FakeModel(64)
    keep, drop = request(1, (1,) * 20, max_tokens=8), request(2, (2,) * 20, max_tokens=8)
    scheduler.add(keep)
    scheduler.add(drop)
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.cancel(2)
    assert scheduler.pages.held == 2
    again = request(2, (3,) * 5, max_tokens=4)
    scheduler.add(again)  # the id is free again
    first = scheduler.finish_step(sample(model.run(plan), scheduler.wanted), model.scores)
    assert [m.id for m in first] == [1]
    messages = drain(scheduler, model)
    assert joined(first + messages[1]) == joined(alone(keep)) and joined(messages[2]) == joined(alone(again))


def test_cancel_with_another_reason() -> None:
    scheduler = make()
    scheduler.add(request(1, (1,)))
    last = scheduler.cancel(1, "error", "the rank died")
    assert last is not None and (last.finish_reason, last.error) == ("error", "the rank died")


def test_max_tokens_beyond_max_seq_len_is_cut() -> None:
    scheduler, model = make(max_seq_len=32), FakeModel(64)
    scheduler.add(request(1, (1,) * 20, max_tokens=100))
    messages = drain(scheduler, model)[1]
    assert len(joined(messages)) == 12 and messages[-1].finish_reason == "length"


def test_the_whole_pool_can_be_one_request() -> None:
    scheduler, model = make(num_pages=2, max_seq_len=64), FakeModel(2)
    for id in (1, 2):
        scheduler.add(request(id, (id,) * 30, max_tokens=3))  # 32 tokens computed, the 33rd never is
    messages = drain(scheduler, model)
    assert all(len(joined(m)) == 3 for m in messages.values())


class Script:
    """Samples what it is told, to play the ends of an output."""

    def __init__(self, tokens: list[int], log_probs: bool = False, **sampling: object) -> None:
        self.scheduler = make(end_id=49)
        self.scheduler.add(request(1, (0,), log_probs=log_probs, **sampling))
        self.messages = []
        for number, token in enumerate(tokens):
            if self.scheduler.schedule() is None:
                break
            score = TokenScore(-float(number)) if log_probs else None
            self.messages.append(self.scheduler.finish_step(([token], [score], [None])))
            self.scheduler.check_integrity()

    @property
    def stream(self) -> list[tuple[int, ...]]:
        return [m[0].token_ids if m else () for m in self.messages]

    @property
    def reason(self) -> str | None:
        return self.messages[-1][0].finish_reason if self.messages[-1] else None


def test_end_id_ends_and_is_not_part_of_the_output() -> None:
    script = Script([1, 2, 49, 3])
    assert (script.stream, script.reason) == ([(1,), (2,), ()], "end_id")
    assert Script([1, 4, 2], end_id=4).stream == [(1,), ()]
    assert Script([49, 49], end_id=-1, max_tokens=2).stream == [(49,), (49,)]
    for token in (3, 5, 49):
        script = Script([1, token], stop_token_ids=(3, 5), include_stop_words=True)
        assert (script.stream, script.reason) == ([(1,), ()], "end_id")
    assert Script([1, 49, 5], end_id=-1, stop_token_ids=(5,)).stream == [(1,), (49,), ()]


def test_stop_words_are_held_back_and_kept_out() -> None:
    words = ((1, 2, 3), (5,), (2, 4))
    for tokens, stream, reason in (
        ([7, 1, 2, 3], [(7,), (), (), ()], "stop_words"),
        ([7, 5], [(7,), ()], "stop_words"),
        ([1, 2, 4], [(), (), (1,)], "stop_words"),  # the start of one word turns out to be the middle of another
        ([1, 1, 2, 9, 8], [(), (1,), (), (1, 2, 9), (8,)], None),
        ([1, 2, 49], [(), (), (1, 2)], "end_id"),
    ):
        script = Script(tokens, stop_words=words)
        assert (script.stream, script.reason) == (stream, reason), tokens
    script = Script([8, 1, 2], stop_words=words, max_tokens=3)
    assert (script.stream, script.reason) == ([(8,), (), (1, 2)], "length")


def test_stop_words_stay_where_asked_for() -> None:
    script = Script([7, 1, 2, 3], stop_words=((1, 2, 3),), include_stop_words=True)
    assert (script.stream, script.reason) == ([(7,), (1,), (2,), (3,)], "stop_words")


def test_log_probs_follow_their_tokens() -> None:
    script = Script([7, 1, 9, 1, 2], log_probs=True, stop_words=((1, 2),))
    assert [m[0].log_probs if m else () for m in script.messages] == [(-0.0,), (), (-1.0, -2.0), (), ()]


def prompt_scores(messages: list[Tokens]) -> list[TokenScore]:
    return [score for message in messages for score in message.prompt_scores]


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompt_scores(chunk: int, max_tokens: int) -> None:
    """In chunks of any size, beside others and with a cached prefix: those of the prompt computed alone."""
    rng = np.random.default_rng(chunk)
    prompts = [random_prompt(rng, length) for length in (1, 2, 17, 40)]
    prompts.append(prompts[-1][:32] + random_prompt(rng, 9))
    scheduler, model = make(max_num_tokens=64, chunk=chunk), FakeModel(64)
    for repeat in range(2):  # the second time, all pages are cached
        for id, prompt in enumerate(prompts):
            top = id % 3
            scheduler.add(request(id, prompt, max_tokens=max_tokens, prompt_log_probs=True, top_log_probs=top))
        messages = drain(scheduler, model)
        for id, prompt in enumerate(prompts):
            assert len(joined(messages[id])) == max_tokens and messages[id][-1].finish_reason == "length"
            assert bool(messages[id][0].prompt_scores) == (len(prompt) > 1), "they come with the first message"
            state, want = 7, []
            for token, following in itertools.pairwise(prompt):
                state = digest(state, token)
                want += score(logits_of(state)[None], [following], id % 3)
            assert prompt_scores(messages[id]) == want, (repeat, id)


def test_a_preempted_prompt_keeps_the_scores_that_it_has() -> None:
    scheduler, model = make(max_num_tokens=16, num_pages=6, chunk=1), FakeModel(6)
    one, other = random_prompt(np.random.default_rng(1), 30), random_prompt(np.random.default_rng(2), 40)
    scheduler.add(request(1, one, max_tokens=30))
    scheduler.add(request(2, other, max_tokens=8, prompt_log_probs=True))
    messages = drain(scheduler, model)
    assert scheduler.preemptions
    fresh = make(num_pages=6)
    fresh.add(request(2, other, max_tokens=8, prompt_log_probs=True))
    assert prompt_scores(messages[2]) == prompt_scores(drain(fresh, FakeModel(6))[2])
    assert len(prompt_scores(messages[2])) == 39


def test_held_back_tokens_leave_with_a_cancellation() -> None:
    script = Script([7, 1], stop_words=((1, 2),))
    last = script.scheduler.cancel(1)
    assert last is not None and last.token_ids == (1,)


def test_a_row_without_a_token_ends_its_request_only() -> None:
    scheduler, model = make(), FakeModel(64)
    everything = tuple((token,) for token in range(VOCAB))
    scheduler.add(request(1, (1,), max_tokens=3, bad_words=everything))
    scheduler.add(request(2, (1,), max_tokens=3))
    messages = drain(scheduler, model)
    assert messages[1][-1].finish_reason == "error" and "forbid every one" in str(messages[1][-1].error)
    assert joined(messages[2]) == joined(alone(request(2, (1,), max_tokens=3)))


def test_counters() -> None:
    scheduler, model = make(), FakeModel(64)
    for id in (1, 2):
        scheduler.add(request(id, (id,) * 5, max_tokens=3))
    drain(scheduler, model)
    assert (scheduler.steps, scheduler.prompt_tokens, scheduler.output_tokens) == (3, 10, 6)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_batch_size": 0}, r"max_batch_size \(0\) must be at least 1"),
        ({"max_num_tokens": 0}, r"max_num_tokens \(0\) must be at least 1"),
        ({"num_pages": 0}, r"num_pages \(0\) must be at least 1"),
        ({"chunk": 0}, r"chunk \(0\) must be at least 1"),
        ({"max_batch_size": 33}, r"max_num_tokens \(32\) must be at least max_batch_size \(33\)"),
    ],
)
def test_limits_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**limits)


GOOD = request(1, (1, 2, 3), max_tokens=4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, token_ids=()), "token_ids is empty: a request needs at least one prompt token"),
        (replace(GOOD, token_ids=(1,) * 256), r"has 256 tokens and must be shorter than max_seq_len \(256\)"),
        (request(1, (1,) * 100, max_tokens=61), r"need 10 KV pages of 16 tokens; the engine has 9"),
    ],
)
def test_requests_refused(bad: Request, message: str) -> None:
    scheduler = make(num_pages=9)
    with pytest.raises(UsageError, match=message):
        scheduler.add(bad)
    assert scheduler.idle and not scheduler.prompt_tokens
    scheduler.check_integrity()


def test_an_id_in_flight_is_refused() -> None:
    scheduler = make()
    scheduler.add(GOOD)
    with pytest.raises(UsageError, match=r"id \(1\) belongs to a request that is still in flight"):
        scheduler.add(GOOD)


class Unread(tuple[int, ...]):
    """Tokens that Python code must not go through one by one."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("a loop over tokens")


def test_it_does_not_check_tokens_again() -> None:
    """Its caller has: every check takes time from the requests that run."""
    scheduler = make()
    scheduler.add(replace(GOOD, token_ids=Unread((1, 2, 3))))
    plan = scheduler.schedule()
    assert plan is not None and list(plan.tokens) == [1, 2, 3]
