"""Constrained output of built engines: valid by the mask alone, and the same tokens in every batch and on any ranks."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.backends.embedded.conftest import FEW_RANKS, Engines
from trtllm_pt.batching import grammars
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import Request, SamplingParams
from trtllm_pt.runtime.llm import LLM, RunResult

# Draws are almost uniform at this temperature, so the model is as good as random: only the mask makes an output valid.
RANDOM = SamplingParams(max_tokens=300, temperature=1000.0)
PROMPTS = ("import os\n", "def f(", "class A:\n    pass", "x")
WORD = {"type": "string", "maxLength": 6}
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": WORD, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
     "required": ["a", "b"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["red", 7, None, {"x": [1]}]}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]{2}$"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "ipv4"},
    {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}]},
    {"type": "array", "prefixItems": [{"const": "n"}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"$defs": {"pair": {"type": "array", "items": WORD, "minItems": 2, "maxItems": 2}},
     "type": "object", "properties": {"p": {"$ref": "#/$defs/pair"}, "q": {"$ref": "#/$defs/pair"}},
     "required": ["p"], "additionalProperties": False},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False,
     "maxProperties": 2},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
]  # fmt: skip


def schema(one: Any, **sampling: Any) -> SamplingParams:
    return replace(RANDOM, guide_type="json_schema", guide=json.dumps(one), **sampling)


def regex(guide: str, **sampling: Any) -> SamplingParams:
    return replace(RANDOM, guide_type="regex", guide=guide, **sampling)


@pytest.fixture(scope="module")
def llm(engines: Engines) -> Iterator[LLM]:
    [folder] = engines("pretrained-2")
    with LLM(folder) as running:
        yield running


def check(one: Any, result: RunResult) -> None:
    assert result.finish_reason == "end_id", result.text
    jsonschema.validate(json.loads(result.text), one, jsonschema.Draft202012Validator)
    jsonschema.Draft202012Validator(one, format_checker=jsonschema.FormatChecker()).validate(json.loads(result.text))


def test_random_outputs_are_valid_and_the_same_alone_batched_and_on_any_ranks(engines: Engines) -> None:
    found = []
    for folder in engines(*(f"pretrained-{ranks}" for ranks in FEW_RANKS)):
        with LLM(folder) as llm:
            wanted = [schema(one, seed=seed) for one in SCHEMAS for seed in range(2)]
            free = [replace(RANDOM, max_tokens=40, seed=seed) for seed in range(len(PROMPTS))]
            batched = llm.generate([PROMPTS[0]] * len(wanted) + [*PROMPTS], wanted + free)
            for number in (0, 7, 15):
                [alone] = llm.generate([PROMPTS[0]], wanted[number])
                assert alone.token_ids == batched[number].token_ids
            assert [r.token_ids for r in llm.generate(PROMPTS, free)] == [r.token_ids for r in batched[len(wanted) :]]
        for sampling, result in zip(wanted, batched, strict=False):
            check(json.loads(sampling.guide), result)
        found.append([result.token_ids for result in batched])
    assert found[0] == found[1]
    assert len(set(found[0])) > len(SCHEMAS)  # seeds matter


def test_preemption(engines: Engines) -> None:
    """A sequence that is computed again goes on where its grammar was."""
    [folder] = engines("pretrained-2")
    wanted = [regex("(-[a-z]){40}", seed=seed) for seed in range(16)]
    with LLM(folder, kv_tokens=640) as llm:
        together = llm.generate(["x" * 40] * len(wanted), wanted)
        assert llm._runtime.stats().preemptions > 0
        for sampling, result in zip(wanted, together, strict=True):
            assert re.fullmatch(sampling.guide, result.text)
            assert llm.generate(["x" * 40], sampling)[0].token_ids == result.token_ids


def test_greedy_and_streamed(llm: LLM) -> None:
    sampling = replace(regex("def [a-z]{3,9} [a-z]{3,9}[.]"), temperature=0.0)
    [whole] = llm.generate([PROMPTS[0]], sampling)
    assert re.fullmatch(sampling.guide, whole.text)
    *pieces, last = llm.stream(PROMPTS[0], sampling)
    assert "".join(map(str, pieces)) == whole.text and last.token_ids == whole.token_ids  # type: ignore[union-attr]


def test_where_an_output_ends(llm: LLM) -> None:
    """At the end token where the grammar allows it, and without one where nothing can follow."""
    for sampling, stop, text, reason in (
        (regex("ab"), (), "ab", "end_id"),
        (regex("ab", end_id=-1), (), "ab", "end_id"),
        (regex("ab", min_tokens=9), (), "ab", "end_id"),
        (regex("a{30}b", max_tokens=1), (), None, "length"),
        (regex("aba{5,9}", end_id=-1), ("b",), "a", "stop_words"),
        (regex("(a|b)c", bad_words=tuple((t,) for t in tokens(llm, "a", "ac"))), (), "bc", "end_id"),
    ):
        [result] = llm.generate([PROMPTS[0]], sampling, stop=stop)
        assert result.finish_reason == reason and text in (None, result.text), (sampling.guide, result.text)


def tokens(llm: LLM, *words: str) -> list[int]:
    assert llm.tokenizer is not None
    found = [llm.tokenizer.token_to_id(word) for word in words]
    return [token for token in found if token is not None]


def test_an_output_that_nothing_can_continue(llm: LLM) -> None:
    from trtllm_pt.errors import RunError

    every = tuple((token,) for token in range(llm.manifest.model.vocab_size))
    with pytest.raises(
        RunError, match=r"^no token is left to choose: bad_words, stop_words, min_tokens and guide forbid"
    ):
        llm.generate([PROMPTS[0]], regex("a+", bad_words=every))


def test_log_probs(llm: LLM) -> None:
    """Raw log-probs are those of the model; processed ones are those after the mask."""
    sampling = replace(regex("(yes|no)"), temperature=1.0, log_probs=True, top_log_probs=5)
    [raw] = llm.generate([PROMPTS[0]], sampling)
    [free] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=1, log_probs=True, top_log_probs=5))
    assert raw.top_log_probs[0] == free.top_log_probs[0]
    [processed] = llm.generate([PROMPTS[0]], replace(sampling, processed_log_probs=True))
    assert processed.token_ids == raw.token_ids
    allowed = {token for token, _ in processed.top_log_probs[0]}
    assert allowed <= set(tokens(llm, "y", "n", "ye", "yes", "no"))
    assert np.exp([p for _, p in processed.top_log_probs[0]]).sum() == pytest.approx(1)
    assert processed.log_probs[0] > raw.log_probs[0]


def test_wrong_guides_leave_the_engine_as_it_was(llm: LLM) -> None:
    bad = schema({"properties": {"a": {"not": {}}}})
    for sampling in (bad, bad):  # the second time, the error is kept
        with pytest.raises(UsageError) as caught:
            llm.generate([PROMPTS[0]] * 2, [replace(RANDOM, max_tokens=300), sampling])
        assert str(caught.value) == "the JSON schema at #/properties/a: not is not supported"
    with pytest.raises(UsageError, match=r"^guide is missing: guide_type regex needs one$"):
        llm.generate([PROMPTS[0]], regex(""))
    [result] = llm.generate([PROMPTS[0]], schema(SCHEMAS[9]))
    assert json.loads(result.text) in (3, 4, 5)


def test_requests_wait_for_their_grammars_and_others_go_on(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    [folder] = engines("pretrained-1")
    compiling, go_on = threading.Event(), threading.Event()
    compile = grammars.Grammars._compile

    def slow(*arguments: Any) -> Any:
        compiling.set()
        go_on.wait()
        return compile(*arguments)

    monkeypatch.setattr(grammars.Grammars, "_compile", slow)
    with LLM(folder) as llm:
        runtime = llm._runtime
        for number in range(3):
            runtime.submit(Request(id=number, token_ids=(5, 6), sampling=regex("ab", end_id=-1, seed=number)))
        with pytest.raises(UsageError, match=r"^id \(0\) belongs to a request that is still in flight$"):
            runtime.submit(Request(id=0, token_ids=(5, 6)))
        assert compiling.wait(60)
        runtime.submit(Request(id=9, token_ids=(5, 6), sampling=SamplingParams(max_tokens=3, end_id=-1)))
        done = [message for _ in range(3) for message in runtime.poll(1) if message.finish_reason]
        assert [(message.id, message.finish_reason) for message in done] == [(9, "length")]
        assert runtime.poll(0.01) == [] and runtime.stats().waiting_requests == 3
        runtime.cancel(1)
        assert [(message.id, message.finish_reason) for message in runtime.poll(1)] == [(1, "cancelled")]
        go_on.set()
        ended: list[int] = []
        while len(ended) < 2:
            ended += [message.id for message in runtime.poll(1) if message.finish_reason == "end_id"]
        assert sorted(ended) == [0, 2]
        assert runtime.stats().active_requests == runtime.stats().waiting_requests == 0

        go_on.clear()
        monkeypatch.setattr(grammars, "_SECONDS", 0.05)
        with pytest.raises(UsageError, match=r"^guide was not compiled within 0 s: use a smaller one$"):
            llm.generate([PROMPTS[0]], regex("abc"))
        go_on.set()


def test_few_grammars_are_kept(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    [folder] = engines("pretrained-1")
    compiled = list[str]()
    compile = grammars.Grammars._compile
    monkeypatch.setattr(grammars, "_KEPT", 2)
    monkeypatch.setattr(
        grammars.Grammars,
        "_compile",
        lambda self, guide_type, guide: (compiled.append(guide), compile(self, guide_type, guide))[1],
    )
    with LLM(folder) as llm:
        for guide in ("a", "b", "a", "c", "a", "b"):
            assert [result.text for result in llm.generate(["x", "y"], regex(guide))] == [guide] * 2
    assert compiled == ["a", "b", "c", "b"]
