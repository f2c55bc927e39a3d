"""Measure speculative decoding by prompt lookup: the tokens per second with drafts, and without, in turn.

    python benchmarks/speculation.py ENGINES [--batches 1 4 16] [--rounds 5] [--json]
    mpirun -n 2 python benchmarks/speculation.py ENGINES …

The prompts are parts of files of Python's standard library. The answers are given, so that a model with random weights
can be measured: the engine computes and samples as always, and then the answer's token takes the place of the sampled
one. `edit` answers with the prompt, in which one name was replaced; `go on` answers with the text that follows it.

A ratio is that of tokens per second with drafts to those without, in one pair of samples: the median, the smallest and
the largest. `drafted` and `accepted` count drafted tokens, in percent of the answers' tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from trtllm_pt.backends.embedded.runtime import EmbeddedRuntime
from trtllm_pt.backends.embedded.session import Session, open_session
from trtllm_pt.batching import runtime, sampling
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import Request, SamplingParams
from trtllm_pt.requests.sequence import Sequence
from trtllm_pt.requests.speculation import DEFAULT
from trtllm_pt.text.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).parents[1] / "pretrained" / "stdlib-pt"
FILES = ("argparse", "ast", "bdb", "cmd", "codecs", "csv", "difflib", "doctest") + (
    "fileinput", "ftplib", "gettext", "heapq", "imaplib", "locale", "mailbox", "pdb",
)  # fmt: skip
PROMPT, ANSWER = 256, 192  # tokens
Texts = list[tuple[list[int], list[int]]]  # prompts with their answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of samples of each case")
    parser.add_argument("--draft-tokens", type=int, default=DEFAULT)
    parser.add_argument("--json", action="store_true", help="print the samples as JSON")
    args = parser.parse_args()
    if not all(1 <= batch <= len(FILES) for batch in args.batches):
        raise UsageError(f"--batches ({args.batches}) must be between 1 and {len(FILES)}")
    if args.rounds < 1 or args.draft_tokens < 1:
        raise UsageError("--rounds and --draft-tokens must be at least 1")
    session = open_session(args.engines)
    if session.world.rank:
        session.follow()
        return
    found = [
        {"case": case, "batch": batch} | compare(session, texts[:batch], args.rounds, args.draft_tokens)
        for case, texts in (("edit", edits()), ("go on", continuations()))
        for batch in args.batches
    ]
    session.close()
    print(json.dumps(found) if args.json else report(found))


def edits() -> Texts:
    """Return prompts whose answers repeat them with another name in place of the most frequent one."""
    pairs = []
    for text in map(source, FILES):
        [(name, _)] = Counter(re.findall(r"\b[a-z_]{4,}\b", text[:4000])).most_common(1)
        prompt, answer = tokens(text)[:PROMPT], tokens(re.sub(rf"\b{name}\b", "renamed", text))
        pairs.append((prompt, answer[:ANSWER]))
    return pairs


def continuations() -> Texts:
    """Return prompts whose answers are what follows in the file."""
    files = [tokens(source(name)) for name in FILES]
    return [(file[:PROMPT], file[PROMPT : PROMPT + ANSWER]) for file in files]


def source(name: str) -> str:
    """Return the middle of a module, after its introduction."""
    text = (Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_text()
    return text[len(text) // 2 :]


def tokens(text: str) -> list[int]:
    tokenizer = load_tokenizer(TOKENIZER)
    assert tokenizer is not None
    return tokenizer.encode(text[:8000]).ids


def compare(session: Session, texts: Texts, rounds: int, draft_tokens: int) -> dict[str, object]:
    """Return tokens per second without and with drafts, sample by sample, and how many tokens were drafted."""
    plain, drafting = EmbeddedRuntime(session), EmbeddedRuntime(session, draft_tokens)
    rates: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        order = (plain, drafting) if number % 2 else (drafting, plain)
        taken = {each: rate(each, texts) for each in order}
        if number:  # the first pair warms up
            rates.append((taken[plain], taken[drafting]))
    stats = drafting.stats()
    made = ANSWER * len(texts) * (rounds + 1)
    assert stats.drafted_tokens is not None and stats.accepted_tokens is not None
    return {
        "rates": rates,
        "drafted": stats.drafted_tokens / made,
        "accepted": stats.accepted_tokens / made,
    }


def rate(engine: EmbeddedRuntime, texts: Texts) -> float:
    """Return the tokens per second of all sequences together, from their first tokens to the last."""
    answers = {number: answer for number, (_, answer) in enumerate(texts)}

    def given(
        logits: npt.NDArray[np.float32], sequences: SequenceOf[Sequence], score: sampling.Score
    ) -> sampling.Sampled:
        _, scores, errors = sampling.sample(logits, sequences, score)
        return [answers[one.id][one.num_output] for one in sequences], scores, errors

    for number, (prompt, _) in enumerate(texts):
        wanted = SamplingParams(max_tokens=ANSWER, end_id=-1)
        engine.submit(Request(id=number, token_ids=tuple(prompt), sampling=wanted))
    runtime.sample, before = given, runtime.sample
    try:
        counts, first = dict.fromkeys(answers, 0), 0.0
        while engine.busy:
            for message in engine.poll(1.0):
                counts[message.id] += len(message.token_ids)
            if not first and all(counts.values()):
                first, early = time.perf_counter(), sum(counts.values())
        return (ANSWER * len(texts) - early) / (time.perf_counter() - first)
    finally:
        runtime.sample = before


def report(found: list[dict[str, object]]) -> str:
    rows = []
    for one in found:
        rates = one["rates"]
        assert isinstance(rates, list)
        ratios = sorted(drafting / plain for plain, drafting in rates)
        rows.append(
            [
                one["case"],
                one["batch"],
                f"{median(plain for plain, _ in rates):.1f}",
                f"{median(drafting for _, drafting in rates):.1f}",
                f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                f"{one['drafted']:.0%}",
                f"{one['accepted']:.0%}",
            ]
        )
    return table(rows, ["answers", "batch", "tokens/s", "with drafts", "ratio", "drafted", "accepted"])


if __name__ == "__main__":
    run_script(main)
