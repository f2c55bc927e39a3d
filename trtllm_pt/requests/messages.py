"""The runtime protocol and its messages, which are the same in a process and on the socket to rank 0.

submit(Request)   cancel(id)   poll(timeout) -> list[Tokens]   stats() -> Stats   close()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import msgspec

FinishReason = Literal["length", "end_id", "stop_words", "cancelled", "timed_out", "invalid", "error"]
# What an output must be. json: any JSON value. json_schema: a JSON value that is valid for a schema. regex: a text that
# a regular expression matches as a whole. ebnf_grammar: a text of a grammar in GBNF or Lark. choice: a text of a list.
GuideType = Literal["json", "json_schema", "regex", "ebnf_grammar", "choice"]
CLOSED = "this engine is closed"  # the message of the error that a closed runtime raises


# The likeliest tokens at a position with their log-probs: the likeliest first, and the lower id first on ties.
TopLogProbs = tuple[tuple[int, float], ...]


class TokenScore(NamedTuple):
    """The log-prob of a token, a natural logarithm, and the likeliest tokens at its position.

    logits: if requested, the raw logits of its position, float32 [V].
    """

    log_prob: float
    top: TopLogProbs = ()
    logits: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request runs: how its tokens are sampled, what is reported, and how it shares the engine with others.

    The defaults are greedy decoding of 64 tokens.

    Random numbers are a function of (seed, position). So a request gets the same tokens whether it runs alone, in a
    batch, after a preemption or after a restart.
    """

    max_tokens: int = 64  # the output ends after this number of tokens; 0 only with prompt_log_probs
    temperature: float = 0.0  # 0: greedy decoding
    top_k: int = 0  # sample from the k likeliest tokens; 0: from all
    top_p: float = 1.0  # sample from the likeliest tokens with this cumulative probability
    min_p: float = 0.0  # sample from tokens with at least this share of the largest probability
    repetition_penalty: float = 1.0  # applies to tokens of prompt and output; 1: no penalty
    presence_penalty: float = 0.0  # applies to tokens of the output
    frequency_penalty: float = 0.0  # applies to each occurrence in the output
    seed: int = 0
    min_tokens: int = 0  # end tokens, stop words and stop strings do not end a shorter output
    end_id: int | None = None  # None: the tokenizer's end token, which LLM fills in; -1: no token ends the output
    stop_token_ids: tuple[int, ...] = ()  # further end tokens, to which LLM adds those of the tokenizer
    stop_words: tuple[tuple[int, ...], ...] = ()  # token sequences that end the output and are not part of it
    include_stop_words: bool = False  # whether stop words and stop strings are part of the output
    logit_bias: tuple[tuple[int, float], ...] = ()  # tokens, each with a number that is added to its logit
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that never appear in the output
    guide_type: GuideType | None = None  # what the output must be
    guide: str = ""  # the schema, the expression, the grammar, or a JSON list of the texts to choose from
    log_probs: bool = False  # whether to return the log-prob of each output token, from the raw logits
    top_log_probs: int = 0  # how many of the likeliest tokens to return beside each log-prob
    processed_log_probs: bool = False  # whether the output's log-probs are those after penalties and temperature
    prompt_log_probs: bool = False  # whether to return the log-prob of each prompt token but the first
    context_logits: bool = False  # whether to return the raw logits that follow each prompt token
    generation_logits: bool = False  # whether to return the raw logits from which each output token was chosen
    priority: int = 0  # of the waiting requests, those with the lowest number run first
    cache_salt: str = ""  # a cached prefix is used only by requests with the salt of the request that computed it


class Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One prompt. The caller chooses the `id`, which must be unique among the requests in flight."""

    id: int
    token_ids: tuple[int, ...]
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)


class Tokens(msgspec.Struct, kw_only=True, tag=True):
    """New tokens of a request, in order. Only the last message of a request has a `finish_reason`."""

    id: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()  # natural logarithms, one per token if requested
    top_log_probs: tuple[TopLogProbs, ...] = ()  # one per log-prob if requested
    # Float32 [V], one per token: with generation_logits all, with context_logits that of the first output token.
    logits: tuple[bytes, ...] = ()
    # Of the prompt's tokens from the second on, in the request's first message that has tokens or a finish reason.
    prompt_scores: tuple[TokenScore, ...] = ()
    cached_tokens: int = 0  # prompt tokens that were found in the KV cache when the request began, in every message
    finish_reason: FinishReason | None = None
    error: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The counters of a runtime since it started, and its present load. None means that the engine cannot count it."""

    steps: int
    active_requests: int
    waiting_requests: int
    preemptions: int
    kv_pages_total: int
    kv_pages_used: int
    prompt_tokens: int
    output_tokens: int
    sync_points_seen: int | None  # boundary all-reduces per forward pass, counted at run time
    hops_per_step: float | None  # other messages between ranks, mean per step
    all_reduce_seconds: float | None = None  # time of rank 0 in boundary all-reduces, including waiting
    all_reduce_bytes: int | None = None  # the bytes of these all-reduces' messages
    peak_memory_bytes: int | None = None  # of the rank that uses most, including mapped weights
    kv_page_tokens: int | None = None  # tokens per page of the KV cache
    reused_tokens: int | None = None  # prompt tokens that were found in the KV cache
    drafted_tokens: int | None = None  # tokens that speculative decoding proposed, if it is on
    accepted_tokens: int | None = None  # those of them that became output


# Messages that only the socket to rank 0 carries.


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Asks rank 0 to call `cancel`."""

    id: int


class AskStats(msgspec.Struct, frozen=True, tag=True):
    """Asks rank 0 to call `stats`. Rank 0 answers with a Stats."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Reports that all ranks have loaded the engine. pids, hosts: the process and the machine of each rank."""

    pids: list[int]
    hosts: list[str]


ToRank0 = Request | Cancel | AskStats
FromRank0 = Ready | Tokens | Stats


class Runtime(Protocol):
    """The protocol of a running engine. The object is used on rank 0 or in its owner; the other ranks follow rank 0.

    A runtime trusts its caller to have checked tokens and sampling fields (Limits.check). LLM, the Triton model and the
    OpenAI port do this for the requests that come from outside. A runtime itself checks lengths only.
    """

    def submit(self, request: Request) -> None:
        """Queue a request. Raises UsageError for a prompt that is empty or too long."""

    def cancel(self, request_id: int) -> None:
        """End a request now, with finish reason `cancelled`; unknown ids are ignored."""

    def poll(self, timeout: float) -> list[Tokens]:
        """Return the tokens generated since the last call, after waiting up to `timeout` seconds for the first one."""
        ...

    def stats(self) -> Stats: ...

    def close(self) -> None:
        """Stop all ranks. Requests in flight are dropped."""
