"""The runtime protocol and its messages, which are the same in a process and on the socket to rank 0.

submit(Request)   cancel(id)   poll(timeout) -> list[Tokens]   stats() -> Stats   close()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

FinishReason = Literal["length", "end_id", "stop_words", "cancelled", "timed_out", "invalid", "error"]
CLOSED = "this engine is closed"  # what a runtime says to a request after `close`


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request's tokens are drawn. The defaults are greedy decoding.

    Draws are counter-based by (seed, position): the same tokens alone, batched, preempted or restarted.
    """

    max_tokens: int = 64
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # on prompt and output; 1: none
    presence_penalty: float = 0.0  # on output
    frequency_penalty: float = 0.0  # on output
    seed: int = 0
    min_tokens: int = 0
    end_id: int | None = None  # None: the tokenizer's, which LLM fills in; -1: never end
    stop_words: tuple[tuple[int, ...], ...] = ()  # token sequences that end the output, kept out of it
    include_stop_words: bool = False  # in the output after all, as TensorRT-LLM has them
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that never appear in the output
    log_probs: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One prompt. Its submitter chooses the `id`, which no other request in flight may have."""

    id: int
    token_ids: tuple[int, ...]
    sampling: SamplingParams = msgspec.field(default_factory=SamplingParams)


class Tokens(msgspec.Struct, kw_only=True, tag=True):
    """New tokens of a request, in order. The last message of a request has a `finish_reason`."""

    id: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()  # one per token where asked for, natural logarithm, before penalties
    finish_reason: FinishReason | None = None
    error: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A runtime's counters since it started, and its load now."""

    steps: int
    active_requests: int
    waiting_requests: int
    preemptions: int
    kv_pages_total: int
    kv_pages_used: int
    prompt_tokens: int
    output_tokens: int
    sync_points_seen: int | None  # boundary all-reduces per forward, counted at run time; None: cannot count
    hops_per_step: float | None  # messages between ranks that are not boundaries, mean per step; None: cannot count
    all_reduce_seconds: float | None = None  # of rank 0 in boundary all-reduces, waiting included; None: cannot tell
    all_reduce_bytes: int | None = None  # of their messages; None: cannot count
    peak_memory_bytes: int | None = None  # of the fullest rank, mapped weights included; None: cannot tell
    kv_page_tokens: int | None = None  # tokens that a page holds; None: cannot tell
    reused_tokens: int | None = None  # of prompts, found in the KV cache; None: cannot tell


# What only the socket carries.


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Calls `cancel`."""

    id: int


class AskStats(msgspec.Struct, frozen=True, tag=True):
    """Calls `stats`; the answer is a Stats."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All ranks have loaded the engine. pids: their processes, by rank."""

    pids: list[int]


ToRank0 = Request | Cancel | AskStats
FromRank0 = Ready | Tokens | Stats


class Runtime(Protocol):
    """One engine directory, running. Lives on rank 0; the other ranks follow it."""

    def submit(self, request: Request) -> None:
        """Queue a request. Raises UsageError for a prompt that the engine cannot take."""

    def cancel(self, request_id: int) -> None:
        """End a request now, with finish reason `cancelled`; unknown ids are ignored."""

    def poll(self, timeout: float) -> list[Tokens]:
        """The tokens made since the last call; waits up to `timeout` seconds for the first."""
        ...

    def stats(self) -> Stats: ...

    def close(self) -> None:
        """Stop all ranks. Requests in flight are dropped."""
