"""The state of a request in an engine: its output tokens, when the output ends, and which tokens may be sent."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any, Protocol

from trtllm_pt.requests.messages import FinishReason, Request, SamplingParams, Tokens, TokenScore


class Constraint(Protocol):
    """What the rest of an output may be."""

    def forbidden(self) -> Any:
        """Return which tokens must not come next, as an array of booleans [V]."""

    def take(self, token: int) -> bool:
        """Add a token to the output. Returns whether another one may follow."""
        ...

    @property
    def error(self) -> str | None:
        """Why no token can follow, if the constraint cannot tell any more; None: it can."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request. The KV cache contains the first `computed` of its `tokens`."""

    request: Request
    tokens: array[int]  # int64: the prompt and the output so far; `take` adds sampled tokens
    limit: int  # the number of tokens, prompt included, at which the output ends
    end_id: int  # the request's end token or, if it has none, the engine's; -1: it has none
    constraint: Constraint | None = None  # of a request with a guide
    scores: list[TokenScore] = field(default_factory=list)  # one per output token if requested, else empty
    prompt_scores: list[TokenScore] = field(default_factory=list)  # of prompt tokens from the second on, if requested
    cached: int | None = None  # prompt tokens found in the KV cache when the request was first admitted
    finish_reason: FinishReason | None = None

    # Copies of the request's fields. Every step reads them, and reaching them through `request` costs more memory
    # accesses.
    id: int = field(init=False)
    ends: frozenset[int] = field(init=False)  # all its end tokens
    stop_words: tuple[tuple[int, ...], ...] = field(init=False)
    salt: bytes = field(init=False)
    plain: bool = field(init=False)  # greedy decoding of raw logits, without a guide, and without log-probs
    unscored: int = field(init=False)  # prompt tokens whose scores are requested and still missing
    sent: int = field(init=False)  # tokens of the prompt and of earlier messages; the rest may start a stop word

    place: tuple[int, int] = (0, 0)  # its priority and the number of its arrival, which the scheduler sets
    # The scheduler sets the following fields when it admits the request, and resets them when it preempts the request.
    pages: list[int] = field(default_factory=list)  # pages of the KV cache; empty while the request waits
    registered: int = 0  # the number of leading pages that are registered for reuse
    computed: int = 0  # updated after each step

    def __post_init__(self) -> None:
        p = self.request.sampling
        self.id, self.stop_words, self.sent = self.request.id, p.stop_words, len(self.request.token_ids)
        self.ends = frozenset(token for token in (self.end_id, *p.stop_token_ids) if token >= 0)
        self.unscored = self.sent - 1 if p.prompt_log_probs or p.context_logits else 0
        self.salt = p.cache_salt.encode()
        self.plain = p == SamplingParams(
            max_tokens=p.max_tokens,
            seed=p.seed,
            end_id=p.end_id,
            stop_token_ids=p.stop_token_ids,
            stop_words=p.stop_words,
            include_stop_words=p.include_stop_words,
            prompt_log_probs=p.prompt_log_probs,
            priority=p.priority,
            cache_salt=p.cache_salt,
        )

    @classmethod
    def start(cls, request: Request, limit: int, end_id: int, constraint: Constraint | None = None) -> Sequence:
        """Return the state of a new request. limit: see the class. end_id: the engine's end token, or -1."""
        own = request.sampling.end_id
        return cls(request, array("q", request.token_ids), limit, end_id if own is None else own, constraint)

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def known(self) -> int:
        """The number of prompt tokens and output tokens so far."""
        return len(self.tokens)

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.token_ids

    @property
    def output(self) -> array[int]:
        return self.tokens[len(self.request.token_ids) :]

    @property
    def wants_logits(self) -> bool:
        """Whether the logits of the next output token are to be returned."""
        p = self.sampling
        return p.generation_logits or (p.context_logits and not self.num_output)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.token_ids)

    def take_prompt_scores(self, scores: Iterable[TokenScore]) -> None:
        """Add the scores of the next prompt tokens."""
        self.prompt_scores += scores
        self.unscored = len(self.request.token_ids) - 1 - len(self.prompt_scores)

    def take(self, token: int, score: TokenScore | None = None) -> FinishReason | None:
        """Add a sampled token. Returns the finish reason if the output ends with it, else None.

        An end token is not part of the output, and a stop word is part of it only if include_stop_words is set. An
        output that its constraint completes ends as with an end token.
        """
        if token in self.ends:
            return "end_id"
        self.tokens.append(token)
        if score is not None:
            self.scores.append(score)
        if self.stop_words and (stop := self._completed_stop_word()):
            if not self.sampling.include_stop_words:
                del self.tokens[-stop:]
            return "stop_words"
        if self.constraint is not None and not self.constraint.take(token):
            return "end_id"
        return "length" if len(self.tokens) == self.limit else None

    def send(self) -> Tokens | None:
        """Return a message with the unsent tokens that cannot belong to a stop word any more, or None without any."""
        until = len(self.tokens)
        if self.stop_words:
            until -= self._possible_stop_word()
        return self._send(until)

    def end(self, reason: FinishReason, error: str | None = None) -> Tokens:
        """End the output. Returns the last message of the request, with all unsent tokens."""
        self.finish_reason = reason
        rest = self._send(len(self.tokens)) or self._message()
        rest.finish_reason, rest.error = reason, error
        return rest

    def _send(self, until: int) -> Tokens | None:
        since = self.sent
        if until <= since:
            return None
        self.sent = until
        message = self._message(tuple(self.tokens[since:until]))
        if self.scores:
            prompt = len(self.request.token_ids)
            scores = self.scores[since - prompt : until - prompt]
            message.log_probs = tuple(score.log_prob for score in scores) if self.sampling.log_probs else ()
            message.logits = tuple(score.logits for score in scores if score.logits)
            if self.sampling.top_log_probs:
                message.top_log_probs = tuple(score.top for score in scores)
        return message

    def _message(self, token_ids: tuple[int, ...] = ()) -> Tokens:
        message = Tokens(id=self.id, token_ids=token_ids, cached_tokens=self.cached or 0)
        if self.prompt_scores and not self.unscored:
            message.prompt_scores, self.prompt_scores = tuple(self.prompt_scores), []
        return message

    def _completed_stop_word(self) -> int:
        """Return the length of the longest stop word at the end of the output, after min_tokens; 0: there is none."""
        spare = self.num_output - self.sampling.min_tokens
        return max((len(w) for w in self.sampling.stop_words if len(w) <= spare and self._ends_with(w)), default=0)

    def _possible_stop_word(self) -> int:
        """Return how many tokens at the end of the output may start a stop word, and so may have to be removed."""
        if not self.sampling.stop_words or self.sampling.include_stop_words:
            return 0
        return max((possible_start(word, self.output) for word in self.sampling.stop_words), default=0)

    def _ends_with(self, word: tuple[int, ...]) -> bool:
        return tuple(self.output[-len(word) :]) == word


def possible_start(word: tuple[int, ...], tokens: SequenceOf[int]) -> int:
    """Return how many tokens at the end of `tokens` are a proper prefix of `word`, at most; 0: none."""
    for length in range(min(len(word) - 1, len(tokens)), 0, -1):
        if tuple(tokens[-length:]) == word[:length]:
            return length
    return 0
