"""The limits of an engine. Each border checks the requests that come from outside against them, once."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import check_sampling, is_token
from trtllm_pt.requests.messages import Request, SamplingParams

if TYPE_CHECKING:
    import numpy.typing as npt

# Upper bounds of a step, which are no options: one compiled graph serves every engine of a model.
MAX_TOKENS, MAX_BATCH = 1 << 17, 1 << 12
MOST_LOGITS_BYTES = 1 << 27  # of the logits that one request can ask for


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

    def check_tokens(self, token_ids: Sequence[int] | npt.NDArray[Any]) -> None:
        """Raises UsageError for the first prompt token that is not a token id. An array must be one of integers."""
        import numpy as np  # here: the command line's help and `doctor` do without it

        if isinstance(token_ids, np.ndarray):
            wrong = np.flatnonzero((token_ids < 0) | (token_ids >= self.vocab_size)).tolist()
        elif set(map(type, token_ids)) <= {int} and (
            not token_ids or (min(token_ids) >= 0 and max(token_ids) < self.vocab_size)
        ):
            wrong = []
        else:
            wrong = [at for at, token in enumerate(token_ids) if not is_token(token, self.vocab_size)]
        if wrong:
            token = token_ids[wrong[0]]
            shown = token.item() if isinstance(token, np.generic) else token
            raise UsageError(
                f"token_ids[{wrong[0]}] ({shown!r}) must be a token id between 0 and {self.vocab_size - 1}"
            )

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raises UsageError for the first field that makes no sense or that the backend cannot honour."""
        check_sampling(sampling, self.vocab_size)
        for problem in self.problems(sampling):
            raise UsageError(problem)

    def check_logits(self, prompt: int, sampling: SamplingParams) -> None:
        """Raises UsageError for a prompt of so many tokens whose logits, with those of the output, are too many."""
        output = min(sampling.max_tokens, self.max_seq_len - prompt)
        for name, tokens in (("context_logits", prompt), ("generation_logits", output)):
            if getattr(sampling, name) and tokens * self.vocab_size * 4 > MOST_LOGITS_BYTES:
                raise UsageError(
                    f"{name} of {tokens} tokens need {tokens * self.vocab_size * 4} bytes; at most {MOST_LOGITS_BYTES} "
                    f"can be asked for, those of {MOST_LOGITS_BYTES // 4 // self.vocab_size} tokens"
                )

    def check(self, request: Request) -> None:
        """Raises UsageError, naming the field, for a request that could never run."""
        self.check_prompt(len(request.token_ids))
        self.check_tokens(request.token_ids)
        self.check_sampling(request.sampling)
        self.check_logits(len(request.token_ids), request.sampling)

    def check_queued(self, request: Request, in_flight: Container[int]) -> None:
        """Raises UsageError for an id that is taken, or for a prompt of the wrong length.

        Nothing else is checked: a runtime trusts its caller. in_flight: the ids that are taken.
        """
        if request.id in in_flight:
            raise UsageError(f"id ({request.id}) belongs to a request that is still in flight")
        self.check_prompt(len(request.token_ids))
