"""Compare what libraries for constrained output make of the schemas of the JSON Schema Test Suite.

    pip install llguidance==1.9.1 xgrammar==0.2.9
    pip download --no-deps --no-binary :all: jsonschema==4.26.0       # its source archive contains the suite
    python benchmarks/json_schemas.py jsonschema-4.26.0.tar.gz [--draft draft2020-12] [--names] [--json]

For each schema of the suite a library either refuses to compile it, or gives token masks. An instance is accepted if
the masks allow each of its tokens, and the end after them, with its keys in some order. A schema is `right` if the
library accepts all valid instances of the suite and no invalid one, `strict` if it rejects a valid one and accepts no
invalid one, and `loose` if it accepts an invalid one: then an output need not be valid. `fails` means that the library
raised something else than a refusal, ended its process, or took longer than SECONDS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tqdm import tqdm

from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import RunError, UsageError

OUTCOMES = ("right", "refused", "strict", "loose", "fails")
TOKENIZER = Path(__file__).parents[1] / "pretrained/stdlib-pt/tokenizer.json"
END = 0  # the end token of that tokenizer
MOST_ORDERS = 24  # of the keys of an object that are tried
SECONDS = 30.0  # in which a library must be done with a schema


@dataclass(frozen=True, slots=True)
class Case:
    """A schema of the suite, with instances and whether each is valid."""

    name: str
    schema: Any
    instances: Sequence[tuple[Any, bool]]


class Found(NamedTuple):
    """What became of a case."""

    name: str
    outcome: str  # one of OUTCOMES
    why: str = ""


class Refused(Exception):
    """A library's message that it cannot compile a schema."""


# Given a schema, each returns a function that says whether the masks allow a text and the end after it.
Compile = Callable[[Any], Callable[[str], bool]]


def llguidance() -> Compile:
    import llguidance

    encode = Tokenizer.from_file(str(TOKENIZER)).encode
    vocabulary = llguidance.LLTokenizer(str(TOKENIZER), eos_token=END)

    def compile(schema: Any) -> Callable[[str], bool]:
        matcher = llguidance.LLMatcher(
            vocabulary, llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0
        )
        if error := matcher.get_error():
            raise Refused(error)

        def accepts(text: str) -> bool:
            one = matcher.deep_copy()
            for token in [*encode(text).ids, END]:
                mask = one.compute_bitmask()
                if not mask[token // 8] >> token % 8 & 1:
                    return False
                one.consume_token(token)
            return True

        return accepts

    return compile


def xgrammar(**options: Any) -> Compile:
    import xgrammar

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    words = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    info = xgrammar.TokenizerInfo(words, xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=[END])
    compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)

    def compile(schema: Any) -> Callable[[str], bool]:
        try:
            grammar = compiler.compile_json_schema(json.dumps(schema), **options)
        except (RuntimeError, ValueError) as error:
            raise Refused(str(error)) from None

        def accepts(text: str) -> bool:
            matcher = xgrammar.GrammarMatcher(grammar)
            mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
            for token in [*tokenizer.encode(text).ids, END]:
                matcher.fill_next_token_bitmask(mask)
                if not int(mask[0, token // 32]) >> token % 32 & 1:
                    return False
                matcher.accept_token(token)
            return True

        return accepts

    return compile


LIBRARIES: dict[str, Callable[[], Compile]] = {
    "llguidance": llguidance,
    "xgrammar": xgrammar,
    "xgrammar, strict_mode=False, any_order=True": lambda: xgrammar(strict_mode=False, any_order=True),
}


def orders(value: Any) -> Iterator[Any]:
    """Yield a value with the keys of its objects in different orders."""
    if isinstance(value, dict):
        for keys in itertools.islice(itertools.permutations(value), MOST_ORDERS):
            for parts in itertools.islice(itertools.product(*(orders(value[key]) for key in keys)), MOST_ORDERS):
                yield dict(zip(keys, parts, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.islice(itertools.product(*map(orders, value)), MOST_ORDERS))
    else:
        yield value


def texts(value: Any) -> Iterator[str]:
    return (json.dumps(one, ensure_ascii=False) for one in orders(value))


def judge(compile: Compile, case: Case) -> Found:
    try:
        accepts = compile(case.schema)
        each = [(any(accepts(text) for text in texts(value)), valid, value) for value, valid in case.instances]
    except Refused as error:
        return Found(case.name, "refused", str(error).strip().splitlines()[-1])
    except Exception as error:
        return Found(case.name, "fails", f"{type(error).__name__}: {error}")
    wrong = [value for accepted, valid, value in each if accepted and not valid]
    missed = [value for accepted, valid, value in each if valid and not accepted]
    if wrong:
        return Found(case.name, "loose", f"accepts {json.dumps(wrong[0])}")
    return Found(case.name, "strict", f"rejects {json.dumps(missed[0])}") if missed else Found(case.name, "right")


def work(library: str, cases: Sequence[Case], pipe: Any) -> None:
    compile = LIBRARIES[library]()
    pipe.send(None)
    for case in cases:
        pipe.send(judge(compile, case))


def outcomes(library: str, cases: Sequence[Case]) -> Iterator[Found]:
    """Judge each case. The library runs in a process of its own, which is started again after a crash."""
    done = 0
    while done < len(cases):
        ours, theirs = (spawn := multiprocessing.get_context("spawn")).Pipe()
        process = spawn.Process(target=work, args=(library, cases[done:], theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            ours.recv()
        except EOFError:
            raise RunError(f"{library} does not start") from None
        try:
            while done < len(cases):
                if not ours.poll(SECONDS):
                    raise EOFError
                yield ours.recv()
                done += 1
        except EOFError:
            process.kill()
            yield Found(cases[done].name, "fails", "it ended its process, or took too long")
            done += 1
        process.join()


def read_suite(path: Path, draft: str) -> list[Case]:
    """Return the schemas of the suite in a folder or a source archive of `jsonschema`, without its optional parts."""
    if path.is_dir():
        files = {file.stem: file.read_bytes() for file in (path / "tests" / draft).glob("*.json")}
    else:
        with tarfile.open(path) as archive:
            members = [one for one in archive.getmembers() if Path(one.name).parent.match(f"json/tests/{draft}")]
            files = {Path(one.name).stem: archive.extractfile(one).read() for one in members if one.isfile()}  # type: ignore[union-attr]
    if not files:
        raise UsageError(f"{path} has no tests of {draft}")
    return [
        Case(
            f"{name}: {group['description']}",
            group["schema"],
            [(test["data"], test["valid"]) for test in group["tests"]],
        )
        for name in sorted(files)
        for group in json.loads(files[name])
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, help="a clone of JSON-Schema-Test-Suite, or jsonschema-X.Y.Z.tar.gz")
    parser.add_argument("--draft", default="draft2020-12", help="a folder of the suite")
    parser.add_argument("--names", action="store_true", help="print each schema that is not right")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    cases = read_suite(options.suite, options.draft)
    results = {
        library: list(tqdm(outcomes(library, cases), total=len(cases), desc=library, unit="schema"))
        for library in LIBRARIES
    }
    if options.json:
        print(json.dumps({library: [found._asdict() for found in each] for library, each in results.items()}, indent=2))
        return
    counts = {library: Counter(found.outcome for found in each) for library, each in results.items()}
    rows = [(library, *(count[outcome] for outcome in OUTCOMES)) for library, count in counts.items()]
    print(table(rows, ("library", *OUTCOMES)))
    for library, each in results.items() if options.names else ():
        print(f"\n{library}")
        for found in each:
            if found.outcome != "right":
                print(f"  {found.outcome:8} {found.name}: {found.why}")


if __name__ == "__main__":
    run_script(main)
