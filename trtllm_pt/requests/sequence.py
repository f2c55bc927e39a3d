"""A request on its way: the tokens of its output, when it ends, and which of them may be sent."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from trtllm_pt.requests.messages import FinishReason, Request, SamplingParams, Tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request. The first `computed` of its `tokens` lie in the KV cache."""

    request: Request
    tokens: array[int]  # int64: prompt, then output so far; `take` adds what was sampled
    limit: int  # tokens, prompt and output together, at which it ends
    end_id: int  # the request's, else the engine's; -1: never end
    log_probs: list[float] = field(default_factory=list)  # one per output token, where asked for
    finish_reason: FinishReason | None = None

    # Of the request, near at hand: whatever a step looks up, it waits for from memory.
    id: int = field(init=False)
    stop_words: tuple[tuple[int, ...], ...] = field(init=False)
    plain: bool = field(init=False)  # its tokens are those with the largest logits, and it asks for nothing else
    sent: int = field(init=False)  # tokens that left in a message, or came in; the rest may be the start of a stop word

    # While it runs; set by the scheduler when it is admitted, reset when it is preempted.
    pages: list[int] = field(default_factory=list)  # none: waiting
    registered: int = 0  # pages, from the first, that are registered for reuse
    computed: int = 0  # set when a step has run

    def __post_init__(self) -> None:
        p = self.request.sampling
        self.id, self.stop_words, self.sent = self.request.id, p.stop_words, len(self.request.token_ids)
        self.plain = p == SamplingParams(
            max_tokens=p.max_tokens,
            seed=p.seed,
            end_id=p.end_id,
            stop_words=p.stop_words,
            include_stop_words=p.include_stop_words,
        )

    @classmethod
    def start(cls, request: Request, limit: int, end_id: int) -> Sequence:
        own = request.sampling.end_id
        return cls(request, array("q", request.token_ids), limit, end_id if own is None else own)

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def known(self) -> int:
        """Prompt and output tokens so far."""
        return len(self.tokens)

    @property
    def output(self) -> array[int]:
        return self.tokens[len(self.request.token_ids) :]

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.token_ids)

    def take(self, token: int, log_prob: float | None = None) -> FinishReason | None:
        """Add a sampled token; why the output ends with it, if it does. An end id stays out of the output, a stop word
        too unless it was asked for."""
        if token == self.end_id:
            return "end_id"
        self.tokens.append(token)
        if log_prob is not None:
            self.log_probs.append(log_prob)
        if self.stop_words and (stop := self._completed_stop_word()):
            if not self.sampling.include_stop_words:
                del self.tokens[-stop:]
            return "stop_words"
        return "length" if len(self.tokens) == self.limit else None

    def send(self) -> Tokens | None:
        """The output tokens not sent yet that no stop word can take back any more; None: there are none."""
        until = len(self.tokens)
        if self.stop_words:
            until -= self._possible_stop_word()
        return self._send(until)

    def end(self, reason: FinishReason, error: str | None = None) -> Tokens:
        """The last message, with the tokens that were held back."""
        self.finish_reason = reason
        rest = self._send(len(self.tokens)) or Tokens(id=self.id)
        rest.finish_reason, rest.error = reason, error
        return rest

    def _send(self, until: int) -> Tokens | None:
        since = self.sent
        if until <= since:
            return None
        self.sent = until
        token_ids = tuple(self.tokens[since:until])
        if not self.log_probs:
            return Tokens(id=self.id, token_ids=token_ids)
        prompt = len(self.request.token_ids)
        return Tokens(id=self.id, token_ids=token_ids, log_probs=tuple(self.log_probs[since - prompt : until - prompt]))

    def _completed_stop_word(self) -> int:
        """Tokens of the longest stop word at the end of the output; 0: none. Ends before min_tokens do not count."""
        spare = self.num_output - self.sampling.min_tokens
        return max((len(w) for w in self.sampling.stop_words if len(w) <= spare and self._ends_with(w)), default=0)

    def _possible_stop_word(self) -> int:
        """Tokens at the end of the output that may be the start of a stop word, and so may have to stay out of it."""
        if not self.sampling.stop_words or self.sampling.include_stop_words:
            return 0
        return max((possible_start(word, self.output) for word in self.sampling.stop_words), default=0)

    def _ends_with(self, word: tuple[int, ...]) -> bool:
        return tuple(self.output[-len(word) :]) == word


def possible_start(word: tuple[int, ...], tokens: SequenceOf[int]) -> int:
    """Tokens at the end of `tokens` with which `word` may have begun; 0: none."""
    for length in range(min(len(word) - 1, len(tokens)), 0, -1):
        if tuple(tokens[-length:]) == word[:length]:
            return length
    return 0
