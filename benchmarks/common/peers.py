"""Measure trtllm_pt and another engine in turn, and the speed of the machine beside every sample.

The memory of a virtual machine may be half as fast for minutes. So a ratio of two samples is meaningful only if the
limit of both was the same around them (the read stream, or the matrix product for prefill). A time is meaningful only
beside that limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtllm_pt.bench.results import median
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import DTYPE_BYTES, active_parameters, flops_per_token

from .side import Generated, Side

DTYPE = "bfloat16"
_STEADY = 1.25  # a pair counts if the limits around it differ by less than this factor
_REST_SECONDS = 0.3  # until the threads of the previous engine have stopped spinning
_FIRST_TOKEN_ID = 4  # lower ids may be special tokens of a peer, such as padding


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed: the first token of one prompt, or a decoding step of a batch."""

    name: str
    batch: int
    prompt: int
    tokens: int

    def seconds(self, generated: Generated) -> float:
        """Return the time of this case."""
        return generated.first if self.tokens == 1 else generated.step

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Draw prompts, other ones for every seed, because an engine does not compute a prefix that it has cached."""
        random = np.random.default_rng((self.batch, self.prompt, seed))
        found: list[list[int]] = random.integers(_FIRST_TOKEN_ID, vocab_size, (self.batch, self.prompt)).tolist()
        return found


def all_cases(steps: int) -> dict[str, Case]:
    """Return all cases by name: the first token after 512, and `steps` steps from a context of 128."""
    cases = [Case("prefill", 1, 512, 1), *(Case(f"decode-{batch}", batch, 128, steps + 1) for batch in (1, 4, 16))]
    return {case.name: case for case in cases}


@dataclass(frozen=True, slots=True)
class Gauges:
    """Functions that measure the machine's limits, in bytes and FLOP per second."""

    read: Callable[[], float]
    multiply: Callable[[], float]


def sample(ours: Side, peer: Side, case: Case, vocab_size: int, number: int, gauges: Gauges) -> dict[str, Any]:
    """Take one pair of samples, whose order changes from pair to pair. `number` 0 is a warm-up.

    `read` and `multiply` are measured before, between and after the two; `multiply` only for prefill, which it limits.
    """
    prompts = case.prompts(vocab_size, number)
    found: dict[str, Generated] = {}
    reads, products = [], []

    def look() -> None:
        time.sleep(_REST_SECONDS)
        reads.append(gauges.read())
        if case.tokens == 1:
            products.append(gauges.multiply())

    order = {"ours": ours, "peer": peer} if number % 2 else {"peer": peer, "ours": ours}
    look()
    for name, side in order.items():
        found[name] = side.generate(prompts, case.tokens)
        look()
    first = [[tokens[0] for tokens in each.tokens] for each in found.values()]
    return {
        "sample": number,
        "order": list(order),
        "ours_s": case.seconds(found["ours"]),
        "peer_s": case.seconds(found["peer"]),
        "read": reads,
        "multiply": products,
        "alike": sum(a == b for a, b in zip(*first, strict=True)),  # first tokens
        "sequences": case.batch,
    }


def step_bytes(config: ModelConfig, bits: int = 16) -> float:
    """Return the bytes of weights that a decode step reads: all but the embedding, unless it is also the head.

    bits: of the layers' weights; their scales, 1 to 3 % more, do not count. Quantised models have a head in 8 bits.
    """
    head = config.vocab_size * config.hidden_size
    layers = active_parameters(config) - head * (1 if config.tie_embeddings else 2)
    return layers * bits / 8 + head * (DTYPE_BYTES[DTYPE] if bits == 16 else 1)


def prefill_flops(config: ModelConfig, tokens: int) -> int:
    """Return the FLOP of the products with weights: the blocks for every token, and the head for the last one."""
    head = 2 * config.vocab_size * config.hidden_size
    return (flops_per_token(config, context=0) - head) * tokens + head


def summary(config: ModelConfig, case: Case, samples: Sequence[Mapping[str, Any]], bits: int = 16) -> dict[str, Any]:
    """Return a row of the table. With ratios above 1, trtllm_pt is faster.

    Only pairs with steady limits count, unless there is none. `of_limit` is the share of the read stream for decode, or
    of the best matrix product for prefill.
    """
    gauge, work = "read", step_bytes(config, bits)
    if case.tokens == 1:
        gauge, work = "multiply", prefill_flops(config, case.prompt)
    steady = [each for each in samples if max(each[gauge]) < _STEADY * min(each[gauge])]
    counted = steady or samples
    ratios = [each["peer_s"] / each["ours_s"] for each in counted]
    rates = [work / each["ours_s"] / _beside(each, gauge) for each in counted]
    return {
        "samples": len(samples),
        "steady": len(steady),
        "ours_ms": 1e3 * median([each["ours_s"] for each in counted]),
        "peer_ms": 1e3 * median([each["peer_s"] for each in counted]),
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "of_limit": median(rates),
        "read_gb_s": median([read for each in counted for read in each["read"]]) / 1e9,
        "alike": sum(each["alike"] for each in samples) / sum(each["sequences"] for each in samples),
    }


def _beside(each: Mapping[str, Any], gauge: str) -> float:
    """Return the mean of the limit before and after our sample of the pair."""
    place = each["order"].index("ours")
    return float(np.mean(each[gauge][place : place + 2]))


_HEADS = "model,peer,case,ours ms,peer ms,peer / ours,pairs,read GB/s,ours of the limit,first tokens alike"


def markdown(lines: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> str:
    """Return the table of model, peer, case and summary as Markdown."""
    rows = [_HEADS.split(","), ["---"] * 3 + ["---:"] * 7]
    for model, peer, case, found in lines:
        spread = f"{found['ratio']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})"
        rows.append(
            [model, peer, case, f"{found['ours_ms']:.2f}", f"{found['peer_ms']:.2f}", spread]
            + [f"{found['steady']} of {found['samples']}", f"{found['read_gb_s']:.0f}"]
            + [f"{found['of_limit']:.2f}", f"{found['alike']:.0%}"]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
