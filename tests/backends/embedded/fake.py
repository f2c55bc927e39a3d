"""A model whose logits are a pure function of the token prefix, read from a paged cache as a real one reads it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.paged_scheduler import PagedScheduler
from trtllm_pt.backends.embedded.scores import score
from trtllm_pt.backends.embedded.step_plan import StepMessage, StepPlan
from trtllm_pt.batching.sampling import sample
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request, SamplingParams, Tokens, TokenScore
from trtllm_pt.requests.sequence import Sequence

VOCAB = 50


LogitsOf = Callable[[int, int], np.ndarray]  # of a state and the token that led to it


class FakeModel:
    """Its cache entry at a position is a hash chained over all tokens before: one stale or foreign entry changes every
    later token."""

    def __init__(self, num_pages: int, logits_of: LogitsOf | None = None) -> None:
        self.cache = np.zeros((num_pages, PAGE), np.uint64)
        self.logits_of = logits_of or any_logits_of
        self.largest_step = 0
        self.messages = new_messages()
        self.scores: list[TokenScore] = []  # of the last plan's scored rows

    def run(self, plan: StepPlan) -> np.ndarray:
        """Logits float32 [R, VOCAB]."""
        self.largest_step = max(self.largest_step, len(plan.tokens))
        states = np.zeros(len(plan.tokens), np.uint64)
        written: list[tuple[int, int]] = []
        for start, first, end, pages in zip(plan.starts, plan.offsets, plan.offsets[1:], plan.pages, strict=False):
            for token in range(first, end):
                at = start + token - first
                before = int(self.cache[pages[(at - 1) // PAGE], (at - 1) % PAGE]) if at else 7
                state = digest(before, plan.tokens[token])
                place = (pages[at // PAGE], at % PAGE)
                written.append(place)
                self.cache[place] = states[token] = state
        assert len(set(written)) == len(written), "two sequences wrote to the same place"
        self.scores = []
        if plan.scored:
            logits = self.rows(states, plan, plan.scored)
            self.scores = score(logits, plan.targets, plan.top)
            if plan.whole:
                self.scores = [one._replace(logits=row.tobytes()) for one, row in zip(self.scores, logits, strict=True)]
        return self.rows(states, plan, plan.last)

    def rows(self, states: np.ndarray, plan: StepPlan, tokens: SequenceOf[int]) -> np.ndarray:
        """Logits float32 [len(tokens), VOCAB]."""
        return np.stack([self.logits_of(int(states[token]), plan.tokens[token]) for token in tokens])


def digest(before: int, token: int) -> int:
    data = np.array([before, token], np.uint64).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def logits_of(state: int) -> np.ndarray:
    return np.random.default_rng(state).normal(0, 2, VOCAB).astype(np.float32)


def any_logits_of(state: int, token: int) -> np.ndarray:
    return logits_of(state)


def repeating_logits_of(state: int, token: int) -> np.ndarray:
    """Of nine tokens in ten, the next one follows from the token alone, so that outputs repeat themselves."""
    logits = logits_of(state)
    if state % 10:
        logits[(7 * token + 3) % 11] += 12
    return logits


def make(max_seq_len: int = 256, **sizes: int) -> PagedScheduler:
    limits = Limits(vocab_size=VOCAB, max_seq_len=max_seq_len, max_input_len=max_seq_len - 1)
    return PagedScheduler(limits, **{"max_batch_size": 4, "max_num_tokens": 32, "num_pages": 64, **sizes})


def step(scheduler: PagedScheduler, model: FakeModel, *, check: bool = True) -> list[Tokens] | None:
    """One step through the wire format; None: idle."""
    plan = scheduler.schedule()
    if plan is None:
        return None
    if check:
        scheduler.check_integrity()
    logits = model.run(received(plan, model.messages))
    messages = scheduler.finish_step(sample(scheduler.rows(logits), scheduler.wanted), model.scores)
    while scheduler.agreed:
        messages += scheduler.go_on(sample(scheduler.rows(logits), scheduler.agreed))
    if check:
        scheduler.check_integrity()
    return messages


def new_messages() -> tuple[StepMessage, StepMessage]:
    """Rank 0's and another rank's."""
    return StepMessage(16, 128, 256), StepMessage(16, 128, 256)


def received(plan: StepPlan, messages: tuple[StepMessage, StepMessage] | None = None) -> StepPlan:
    """What another rank's engine gets of it, perhaps after others."""
    ours, theirs = messages or new_messages()
    ours.write(plan)
    theirs.room[: len(ours.numbers)] = ours.numbers
    theirs.read()
    tokens, starts, offsets, pages, rows = (tensor.tolist() for tensor in theirs.inputs)
    last, scored = rows[: theirs.last], rows[theirs.last :]
    targets = [] if theirs.targets is None else theirs.targets.tolist()
    return StepPlan(
        array("q", tokens), array("q", starts), offsets, last, pages, scored, targets, theirs.top, theirs.whole
    )


def drain(scheduler: PagedScheduler, model: FakeModel, *, check: bool = True) -> dict[int, list[Tokens]]:
    """Run until idle; the messages by request."""
    messages: dict[int, list[Tokens]] = {}
    while (new := step(scheduler, model, check=check)) is not None:
        for message in new:
            messages.setdefault(message.id, []).append(message)
    return messages


def joined(messages: list[Tokens]) -> tuple[int, ...]:
    """The tokens of a finished request: only its last message has a finish reason."""
    assert [m.finish_reason is None for m in messages] == [True] * (len(messages) - 1) + [False]
    return tuple(token for m in messages for token in m.token_ids)


def alone(request: Request, logits_of: LogitsOf | None = None) -> list[Tokens]:
    """What a request gets with an engine to itself."""
    scheduler, model = make(num_pages=256), FakeModel(256, logits_of)
    scheduler.add(request)
    return drain(scheduler, model, check=False)[request.id]


def random_prompt(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, VOCAB, length).tolist())


def sequence(
    prompt: tuple[int, ...] = (1,), output: tuple[int, ...] = (), end_id: int = -1, **sampling: object
) -> Sequence:
    """A sequence in the middle of its output, for the sampler."""
    request = Request(id=0, token_ids=prompt, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]
    made = Sequence.start(request, len(prompt) + len(output) + 64, end_id)
    made.tokens.extend(output)
    return made
