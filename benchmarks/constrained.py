"""Measure what a token mask costs: tokens per second of batches in which no, one or every request has a guide.

    python benchmarks/constrained.py ENGINES [--batches 1 2 16] [--tokens 96] [--rounds 5] [--json]

ENGINES must be for one rank. Without a tokenizer, as with random weights, it gets one of the model's vocabulary, which
is trained on Python's standard library. The guide is a JSON schema of a long list of objects. All requests sample with
temperature 1, and the weights may be random: the mask alone makes the output JSON. The cases are measured in turn, and
`beside` is the rate of the requests without a guide relative to those in a batch without any guide.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from sysconfig import get_path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from trtllm_pt import LLM, SamplingParams
from trtllm_pt.backends import read_engine
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table

PROMPT = list(range(100, 132))
WORD = {"type": "string", "maxLength": 12}
ITEM = {
    "type": "object",
    "properties": {
        "name": WORD,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": WORD, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GUIDE = json.dumps({"type": "array", "items": ITEM, "minItems": 1000})
Case = tuple[int, int]  # requests, and how many of them have a guide


def trained_tokenizer(vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(get_path("stdlib")).glob("*.py"))
    tokenizer.train_from_iterator((path.read_text(encoding="utf-8", errors="replace") for path in sources), trainer)
    return tokenizer


def with_tokenizer(engines: Path, folder: Path) -> Path:
    """Return an engine directory that has a tokenizer: `engines`, or a copy in `folder`, whose files are links."""
    if (engines / "tokenizer").exists():
        return engines
    shutil.copytree(engines.resolve(), folder, copy_function=lambda file, copy: Path(copy).symlink_to(file))
    (folder / "tokenizer").mkdir()
    trained_tokenizer(read_engine(engines).model.vocab_size).save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": 0}')
    return folder


def rates(llm: LLM, case: Case, tokens: int, seed: int) -> tuple[float, float]:
    """Return tokens per second after the first token: of the whole batch, and of a request without a guide."""
    batch, guided = case
    plain = SamplingParams(max_tokens=tokens, temperature=1.0, end_id=-1)
    each = [replace(plain, seed=seed + number) for number in range(batch)]
    each[batch - guided :] = [replace(one, guide_type="json_schema", guide=GUIDE) for one in each[batch - guided :]]
    results = llm.generate([PROMPT] * batch, each)
    assert all(len(result.token_ids) == tokens for result in results)
    return sum(result.tokens_per_s for result in results), results[0].tokens_per_s


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 16])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    cases = [(batch, guided) for batch in options.batches for guided in sorted({0, 1, batch})]
    found: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    with (
        tempfile.TemporaryDirectory() as scratch,
        LLM(with_tokenizer(options.engines, Path(scratch) / "engines")) as llm,
    ):
        for number in tqdm(range(options.rounds + 1), unit="round"):
            for case in cases:
                one = rates(llm, case, options.tokens, seed=1000 * number)
                if number:  # the first round compiles the guide and warms the caches
                    found[case].append(one)
    rows = []
    for batch, guided in cases:
        own, plain = found[batch, guided], found[batch, 0]
        whole = [one[0] / other[0] for one, other in zip(own, plain, strict=True)]
        beside = [one[1] / other[1] for one, other in zip(own, plain, strict=True)] if guided < batch else []
        rows.append((batch, guided, statistics.median(one[0] for one in own), whole, beside))
    if options.json:
        names = ("batch", "guided", "tokens_per_s", "ratios", "beside")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return
    shown = [
        (batch, guided, f"{rate:.1f}", spread(whole), spread(beside)) for batch, guided, rate, whole, beside in rows
    ]
    print(table(shown, ("batch", "guided", "tokens/s", "of the batch", "beside")))


def spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"


if __name__ == "__main__":
    run_script(main)
