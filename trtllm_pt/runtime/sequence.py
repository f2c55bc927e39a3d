"""A request on its way through the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trtllm_pt.messages import FinishReason, Request, SamplingParams
from trtllm_pt.runtime.kv_pages import PAGE, pages_for
from trtllm_pt.runtime.step_plan import Int64s


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request. `known` tokens have a value, the first `computed` of them lie in the KV cache."""

    request: Request
    tokens: Int64s  # [limit] prompt, then output; the scheduler adds what was sampled
    known: int  # prompt and output tokens so far; set when a token was sampled
    end_id: int  # the request's, else the engine's; -1: never end
    log_probs: list[float] = field(default_factory=list)  # one per output token, where asked for
    sent: int = 0  # output tokens that left in a message; the rest may be the start of a stop word
    finish_reason: FinishReason | None = None

    # While it runs; set by the scheduler when it is admitted, reset when it is preempted.
    slot: int = -1  # row of the scheduler's page table; -1: waiting
    pages: list[int] = field(default_factory=list)
    registered: int = 0  # pages, from the first, that are registered for reuse
    computed: int = 0  # set when a step has run

    @classmethod
    def start(cls, request: Request, limit: int, end_id: int) -> Sequence:
        """`limit`: tokens, prompt and output together, at which it ends."""
        prompt = len(request.token_ids)
        tokens = np.empty(limit, np.int64)
        tokens[:prompt] = request.token_ids
        own = request.sampling.end_id
        return cls(request, tokens, prompt, end_id if own is None else own)

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def prompt(self) -> Int64s:
        return self.tokens[: len(self.request.token_ids)]

    @property
    def output(self) -> Int64s:
        return self.tokens[len(self.request.token_ids) : self.known]

    @property
    def num_output(self) -> int:
        return self.known - len(self.request.token_ids)

    @property
    def num_pages(self) -> int:
        """Pages that the tokens known now need."""
        return pages_for(self.known)

    def page_key(self, page: int) -> bytes:
        """The tokens of its full page number `page`."""
        return self.tokens[page * PAGE : (page + 1) * PAGE].tobytes()
