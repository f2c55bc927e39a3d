"""Our engine and another one in turn, seconds apart, with the machine's own speed taken beside every sample.

A virtual machine's memory may halve its speed for minutes: a ratio of two samples means something only where what
limits both, the read stream or for a prompt the matrix product, was the same around both, and a time only beside it.
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
_STEADY = 1.25  # the gauges around a pair of samples differ by less than this
_REST_SECONDS = 0.3  # until the threads of whoever worked last have stopped spinning
_FIRST_TOKEN_ID = 4  # those below may mean something to a peer, such as padding


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed: the first token of one prompt, or a decoding step of a batch."""

    name: str
    batch: int
    prompt: int
    tokens: int

    def seconds(self, generated: Generated) -> float:
        return generated.first if self.tokens == 1 else generated.step

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """New ones for every seed: a prefix that an engine knows would not be computed."""
        random = np.random.default_rng((self.batch, self.prompt, seed))
        found: list[list[int]] = random.integers(_FIRST_TOKEN_ID, vocab_size, (self.batch, self.prompt)).tolist()
        return found


def all_cases(steps: int) -> dict[str, Case]:
    """By name: the first token of 512, and `steps` steps from a context of 128."""
    cases = [Case("prefill", 1, 512, 1), *(Case(f"decode-{batch}", batch, 128, steps + 1) for batch in (1, 4, 16))]
    return {case.name: case for case in cases}


@dataclass(frozen=True, slots=True)
class Gauges:
    """The machine's limits, taken again whenever they are called. Bytes and FLOP per second."""

    read: Callable[[], float]
    multiply: Callable[[], float]


def sample(ours: Side, peer: Side, case: Case, vocab_size: int, number: int, gauges: Gauges) -> dict[str, Any]:
    """One pair, whose order changes from sample to sample. `number` 0 is for warming up.

    read and multiply: before, between and after the two; the latter only beside prefill, which it limits.
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


def step_bytes(config: ModelConfig) -> int:
    """Weights that a decoding step reads: all but the embedding, of which it looks up rows. A tied one is the head."""
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    return (active_parameters(config) - looked_up) * DTYPE_BYTES[DTYPE]


def prefill_flops(config: ModelConfig, tokens: int) -> int:
    """Of the weights: the blocks for every token, the head for the last one. What attention adds is left out."""
    head = 2 * config.vocab_size * config.hidden_size
    return (flops_per_token(config, context=0) - head) * tokens + head


def summary(config: ModelConfig, case: Case, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One line of the table. Ratios over 1: ours is faster. Only pairs in a steady minute count, if there is any.

    of_limit: of the read stream where it decodes, of the best matrix product where it prefills.
    """
    gauge, work = ("multiply", prefill_flops(config, case.prompt)) if case.tokens == 1 else ("read", step_bytes(config))
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
    """The mean of before and after our half of the pair."""
    place = each["order"].index("ours")
    return float(np.mean(each[gauge][place : place + 2]))


_HEADS = "model,peer,case,ours ms,peer ms,peer / ours,pairs,read GB/s,ours of the limit,first tokens alike"


def markdown(lines: Sequence[tuple[str, str, str, Mapping[str, Any]]]) -> str:
    """The table of model, peer, case and summary."""
    rows = [_HEADS.split(","), ["---"] * 3 + ["---:"] * 7]
    for model, peer, case, found in lines:
        spread = f"{found['ratio']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})"
        rows.append(
            [model, peer, case, f"{found['ours_ms']:.2f}", f"{found['peer_ms']:.2f}", spread]
            + [f"{found['steady']} of {found['samples']}", f"{found['read_gb_s']:.0f}"]
            + [f"{found['of_limit']:.2f}", f"{found['alike']:.0%}"]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
