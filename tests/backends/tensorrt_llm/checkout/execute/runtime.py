"""What TensorRT-LLM's executor does around an engine: pages, packed batches, prefill in chunks, and decode steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.cache import PagedCache
from tests.backends.tensorrt_llm.checkout.execute.lockstep import in_lockstep
from tests.backends.tensorrt_llm.checkout.execute.program import Program
from tests.backends.tensorrt_llm.checkout.execute.rank import Rank
from tests.backends.tensorrt_llm.checkout.execute.runtime_view import RuntimeView
from tests.backends.tensorrt_llm.checkout.execute.values import ExecutionError


@dataclass(frozen=True)
class Plan:
    """How prompts are served. Tokens after a prompt are given, whatever the logits say."""

    prompts: Sequence[Sequence[int]]
    forced: Sequence[Sequence[int]]
    joins: Sequence[int] = ()  # the step at which each prompt arrives; none: all at the first
    chunk: int | None = None  # at most so many tokens of a prompt in one step


@dataclass
class InFlight:
    """A request on its way."""

    prompt: Sequence[int]
    forced: Sequence[int]
    pages: Tensor
    joins: int
    cached: int = 0
    logits: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.forced]

    @property
    def is_context(self) -> bool:
        return self.cached < len(self.prompt)

    @property
    def is_done(self) -> bool:
        return len(self.logits) == len(self.forced) + 1

    def count(self, chunk: int | None) -> int:
        """Tokens in the next step."""
        left = len(self.prompt) - self.cached
        return min(left, chunk or left) if self.is_context else 1


def generate(programs: Sequence[Program], plan: Plan, view: RuntimeView) -> list[Tensor]:
    """Per prompt the logits after it and after each forced token, [1 + forced, padded vocabulary].

    Raises ExecutionError, also where ranks disagree on logits.
    """
    if len(programs) != view.ranks:
        raise ExecutionError(f"there are engines for {len(programs)} ranks, config.json has {view.ranks}")
    per_sequence = -(-view.max_seq_len // view.tokens_per_page)
    count = len(plan.prompts) * per_sequence
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).reshape(-1, per_sequence)
    joins = plan.joins or [0] * len(plan.prompts)
    sequences = [InFlight(*each) for each in zip(plan.prompts, plan.forced, shuffled, joins, strict=True)]
    geometry = (2 * count, view.tokens_per_page, view.kv_heads, view.head_size)
    ranks = [Rank(program, PagedCache(*geometry)) for program in programs]
    step = 0
    while not all(sequence.is_done for sequence in sequences):
        here = [sequence for sequence in sequences if sequence.joins <= step and not sequence.is_done]
        here.sort(key=lambda sequence: not sequence.is_context)  # prompts first
        if here:
            _step(ranks, here, plan.chunk, view)
        step += 1
    return [torch.stack(sequence.logits) for sequence in sequences]


def _step(ranks: list[Rank], batch: list[InFlight], chunk: int | None, view: RuntimeView) -> None:
    counts = [sequence.count(chunk) for sequence in batch]
    feeds = _feeds(batch, counts, view)
    outputs = in_lockstep([rank.step(_of_rank(rank, feeds)) for rank in ranks])
    logits = outputs[0]["logits"]
    if any(not torch.equal(logits, other["logits"]) for other in outputs[1:]):
        raise ExecutionError("the ranks end with different logits")
    for sequence, count, row in zip(batch, counts, logits, strict=True):
        sequence.cached += count
        if not sequence.is_context:  # else more of the prompt is to come, and the logits mean nothing
            sequence.logits.append(row)


def _of_rank(rank: Rank, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the workspace that only some strategies of the all-reduce have."""
    workspace = [tensor for tensor in rank.program.network.inputs if tensor.name == "all_reduce_workspace"]
    return feeds | {tensor.name: torch.zeros(tensor.shape, dtype=torch.int64) for tensor in workspace}


def _feeds(batch: list[InFlight], counts: list[int], view: RuntimeView) -> dict[str, Tensor]:
    """The network's inputs by name, as the executor fills them for packed tokens and a paged cache."""
    spans = [range(sequence.cached, sequence.cached + count) for sequence, count in zip(batch, counts, strict=True)]
    lengths = [count if s.is_context else len(s.prompt) for s, count in zip(batch, counts, strict=True)]
    pages = torch.stack([sequence.pages for sequence in batch])
    offsets = torch.stack((2 * pages, 2 * pages + 1), 1)[None]  # [pool, request, keys | values, page]
    return {
        "input_ids": _ints(s.tokens[position] for s, span in zip(batch, spans, strict=True) for position in span),
        "position_ids": _ints(position for span in spans for position in span),
        "last_token_ids": torch.tensor(counts).cumsum(0),
        "kv_cache_block_offsets": offsets,
        "host_kv_cache_block_offsets": offsets,
        "host_kv_cache_pool_pointers": torch.zeros(1, 2, dtype=torch.int64),
        "host_kv_cache_pool_mapping": _ints([0, layer] for layer in range(view.layers)),
        "sequence_length": _ints(span.stop for span in spans),
        "host_request_types": _ints(not sequence.is_context for sequence in batch),
        "host_past_key_value_lengths": _ints(span.start for span in spans),
        "context_lengths": _ints(lengths),
        "host_context_lengths": _ints(lengths),
        "host_runtime_perf_knobs": torch.full((16,), -1),
        "host_context_progress": torch.zeros(1, dtype=torch.int64),
        "host_max_attention_window_sizes": _ints(view.windows),
        "host_sink_token_length": _ints([0]),
        "cache_indirection": torch.zeros(len(batch), 1, view.max_seq_len, dtype=torch.int64),
    }


def _ints(values: Iterable[Any]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
