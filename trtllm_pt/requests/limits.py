"""What an engine can take, and which requests it refuses: asked at every border, before anything is queued or sent."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import check_sampling, is_token
from trtllm_pt.requests.messages import Request, SamplingParams

# Upper bounds of a step, which are no options: one compiled graph serves every engine of a model.
MAX_TOKENS, MAX_BATCH = 1 << 17, 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The requests that one engine can take."""

    vocab_size: int
    max_seq_len: int  # tokens of a prompt and its output
    max_input_len: int  # tokens of a prompt
    problems: Callable[[SamplingParams], Iterable[str]] = lambda sampling: ()  # what the backend cannot honour

    def length(self, request: Request) -> int:
        """Tokens, prompt and output together, at which the request ends."""
        return min(len(request.token_ids) + request.sampling.max_tokens, self.max_seq_len)

    def check_prompt(self, length: int) -> None:
        """Raises UsageError for a prompt of so many tokens that could never run."""
        if not length:
            raise UsageError("token_ids is empty: a request needs at least one prompt token")
        if length >= self.max_seq_len:
            raise UsageError(
                f"the prompt has {length} tokens and must be shorter than max_seq_len ({self.max_seq_len}), "
                "which counts prompt and output"
            )
        if length > self.max_input_len:
            raise UsageError(
                f"the prompt has {length} tokens, but the engine takes at most max_input_len ({self.max_input_len})"
            )

    def check(self, request: Request, in_flight: Container[int] = ()) -> None:
        """Raises UsageError, naming the field, for a request that could never run. in_flight: ids that are taken."""
        if request.id in in_flight:
            raise UsageError(f"id ({request.id}) belongs to a request that is still in flight")
        self.check_prompt(len(request.token_ids))
        for position, token in enumerate(request.token_ids):
            if not is_token(token, self.vocab_size):
                raise UsageError(
                    f"token_ids[{position}] ({token!r}) must be a token id between 0 and {self.vocab_size - 1}"
                )
        check_sampling(request.sampling, self.vocab_size)
        for problem in self.problems(request.sampling):
            raise UsageError(problem)
