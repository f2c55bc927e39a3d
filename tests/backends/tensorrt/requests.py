"""The requests that tests of the runtime make."""

from __future__ import annotations

import random
from dataclasses import replace

from trtllm_pt.requests.messages import SamplingParams

PROMPT = "def binary_search("


def workload(count: int, vocab_size: int) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Prompts and outputs of several lengths, some greedy and some drawn, some with log-probs."""
    draw = random.Random(11)
    requests = []
    for number in range(count):
        prompt = tuple(draw.randrange(1, vocab_size) for _ in range(draw.choice((1, 3, 17, 40, 60))))
        sampling = SamplingParams(max_tokens=draw.choice((1, 9, 20)), end_id=-1, seed=number, log_probs=number % 3 == 0)
        if number % 2:
            sampling = replace(sampling, temperature=0.9, top_k=40, repetition_penalty=1.1)
        requests.append((prompt, sampling))
    return requests
