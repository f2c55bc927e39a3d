"""Measure what log-probs cost: the prefill of a prompt with those of its tokens, and decode steps with the top five.

    python benchmarks/log_probs.py ENGINES [--prompt 512] [--batch 16] [--tokens 64] [--rounds 15] [--json]

Each case is measured with and without log-probs in turn, and a ratio compares two neighbouring samples. The prefill is
the time to the first token of one request, and the decode step is the time per token of a batch. No prompt is in the
KV cache beforehand. The weights may be random.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from trtllm_pt import LLM, SamplingParams
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table


def samples(llm: LLM, prompts: list[list[int]], sampling: SamplingParams, name: str) -> float:
    """Return the seconds of a prefill, or of a decode step of all prompts."""
    results = llm.generate(prompts, sampling)
    if name == "prefill":
        return results[0].ttft_s
    return 1 / statistics.median(result.tokens_per_s for result in results)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--threads", type=int, help="threads of a rank")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt of the prefill [%(default)s]")
    parser.add_argument("--batch", type=int, default=16, help="requests of a decode step [%(default)s]")
    parser.add_argument("--tokens", type=int, default=64, help="decode steps of a sample [%(default)s]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    plain = SamplingParams(max_tokens=1, end_id=-1)
    longer = replace(plain, max_tokens=options.tokens)
    cases = {
        "prefill": (1, options.prompt, plain, replace(plain, prompt_log_probs=True)),
        "decode step": (options.batch, 32, longer, replace(longer, log_probs=True, top_log_probs=5)),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    draw = random.Random(0)
    with LLM(options.engines, threads=options.threads) as llm:
        vocabulary = range(llm.manifest.model.vocab_size)
        for number in tqdm(range(options.rounds + 1), unit="round"):
            for name, (batch, length, *both) in cases.items():
                taken = {}
                for index in (0, 1) if number % 2 else (1, 0):
                    prompts = [draw.choices(vocabulary, k=length) for _ in range(batch)]
                    taken[index] = samples(llm, prompts, both[index], name)
                if number:  # the first round warms the caches
                    found[name].append((taken[0], taken[1]))
    rows = []
    for name, pairs in found.items():
        ratios = [scored / without for without, scored in pairs]
        milliseconds = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
        rows.append((name, *milliseconds, statistics.median(ratios), min(ratios), max(ratios)))
    if options.json:
        names = ("case", "ms", "ms_with_log_probs", "ratio", "least", "most")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return
    shown = [
        (name, f"{a:.2f}", f"{b:.2f}", f"{ratio:.3f} ({least:.3f} to {most:.3f})")
        for name, a, b, ratio, least, most in rows
    ]
    print(table(shown, ("case", "ms", "ms with log-probs", "ratio")))


if __name__ == "__main__":
    run_script(main)
