"""Guides as grammars: which texts the masks allow, with each kind of tokenizer, and what is said of wrong guides."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.configs import PRETRAINED
from tests.text import tokenizers
from trtllm_pt.batching.grammar import Constraint, Vocabulary
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import sampling_problems
from trtllm_pt.requests.messages import GuideType, SamplingParams
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

END = end_ids(PRETRAINED)[0]
WORDS = ["red", "reddish", 'a "b"\\c/\n', "né 你"]
CODE = r"[a-f]{2}-[0-9]{1,3}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(PRETRAINED, required=True)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(PRETRAINED, tokenizer.get_vocab_size() + 3)


def schema(**keywords: object) -> str:
    return json.dumps(keywords)


def constraint(vocabulary: Vocabulary, guide_type: GuideType, guide: str, end_id: int = END) -> Constraint:
    return vocabulary.compile(guide_type, guide).constraint(SamplingParams(end_id=end_id))


def accepts(one: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the masks allow each token of a text, and its end."""
    tokens = tokenizer.encode(text).ids
    for number, token in enumerate(tokens, 1):
        if one.forbidden()[token]:
            return False
        if not one.take(token):
            return number == len(tokens)
    return not one.forbidden()[END]


def drawn(one: Constraint, seed: int, most: int = 400) -> list[int]:
    """Tokens drawn uniformly from those that the masks allow, until the end."""
    draw, tokens = random.Random(seed), list[int]()
    while len(tokens) < most:
        token = draw.choice(np.flatnonzero(~one.forbidden()).tolist())
        if token == END:
            return tokens
        tokens.append(token)
        if not one.take(token):
            return tokens
    raise AssertionError("the output has no end")


@pytest.mark.parametrize(
    ("guide_type", "guide", "right", "wrong"),
    [
        ("regex", CODE, ["ab-1", "ff-123"], ["ab-", "ab-1234", "gg-1", "ab-1 ", ""]),
        ("regex", r"^\d+$", ["0", "42"], ["", "x", "4 2"]),
        ("regex", "(yes|no|)!?\n/", ["yes!\n/", "\n/"], ["yes", "maybe\n/"]),
        ("choice", json.dumps(WORDS), WORDS, ["re", "redd", "blue", ""]),
        ("ebnf_grammar", 'root ::= "(" root ")" | [0-9]+', ["7", "((42))"], ["(7", "()", "7)"]),
        ("ebnf_grammar", 'start: "(" start ")" | /[0-9]+/', ["7", "((42))"], ["(7", "()", "7)"]),
        ("json", "", ['{"a": [1, 2.5e3, null]}', "[]", "true", '"é"'], ["{", "{'a': 1}", "[1,]", "nul"]),
        ("json_schema", "true", ["3", "{}"], ["x"]),
        ("json_schema", schema(type="integer", minimum=-3, maximum=12), ["-3", "12"], ["13", "1.5", '"1"']),
        ("json_schema", schema(enum=["a", 1, None]), ['"a"', "1", "null"], ['"b"', "2"]),
        ("json_schema", schema(type="string", pattern="^a+$", maxLength=3), ['"aaa"'], ['"aaaa"', '"b"', '""']),
        ("json_schema", schema(type="string", format="date"), ['"2026-11-30"'], ['"2026-13-30"', '"x"']),
        ("json_schema", schema(type="array", prefixItems=[{"const": 1}], items=False), ["[1]", "[]"], ["[2]"]),
        (
            "json_schema",
            schema(type="object", properties={"a": {"type": "null"}}, required=["a"], additionalProperties=False),
            ['{"a":null}', '{ "a" : null }', '{\n  "a": null\n}'],
            ["{}", '{"a": 1}', '{"a": null, "b": 1}', '{"a":' + " " * 21 + "null}"],
        ),
    ],
)  # fmt: skip
def test_what_a_guide_allows(
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    guide_type: GuideType,
    guide: str,
    right: list[str],
    wrong: list[str],
) -> None:
    grammar = vocabulary.compile(guide_type, guide)
    found = {
        text: accepts(grammar.constraint(SamplingParams(end_id=END)), tokenizer, text) for text in (*right, *wrong)
    }
    assert found == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


@pytest.mark.parametrize("make", [tokenizers.byte_level, tokenizers.byte_fallback])
def test_random_outputs_match_with_every_tokenizer(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    one = make()
    one.save(str(tmp_path / "tokenizer.json"))
    end = one.token_to_id("<end>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    grammar = Vocabulary(tmp_path, one.get_vocab_size()).compile("regex", f"({CODE}| é){{1,9}}")
    draw = random.Random(0)
    for _ in range(20):
        state, text, ids = grammar.constraint(SamplingParams(end_id=end)), "", list[int]()
        while (token := draw.choice(np.flatnonzero(~state.forbidden()).tolist())) != end:
            ids.append(token)
            if not state.take(token):
                break
        before = one.encode("c").ids[-1:]  # a text of its own would lose its first space
        text = one.decode([*before, *ids]).removeprefix("c")
        assert re.fullmatch(f"({CODE}| é){{1,9}}", text), text


@pytest.mark.parametrize("make", [tokenizers.unigram, tokenizers.word_piece])
def test_tokenizers_that_are_not_supported(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"^guide_type is not supported with this model's tokenizer: "):
        Vocabulary(tmp_path, 16)


def test_an_engine_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^guide_type needs a tokenizer, and this engine has none$"):
        Vocabulary(tmp_path, 16)


def test_padding_of_the_vocabulary_is_forbidden(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    forbidden = constraint(vocabulary, "regex", "(.|\n)*").forbidden()
    assert len(forbidden) == tokenizer.get_vocab_size() + 3 and forbidden[-3:].all()


def test_only_end_tokens_of_the_request_end_an_output(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    a = tokenizer.token_to_id("a")
    for end_id, stop_words, allowed in ((END, (), [END]), (-1, ((END,),), [END]), (-1, ((a, a), (a,)), [])):
        state = vocabulary.compile("regex", "bc?").constraint(SamplingParams(end_id=end_id, stop_words=stop_words))
        assert state.take(tokenizer.token_to_id("b"))
        c = tokenizer.token_to_id("c")
        assert np.flatnonzero(~state.forbidden()).tolist() == sorted([*allowed, c])
        assert not state.take(c)  # nothing can follow, with or without an end token


def test_an_end_token_that_is_also_text_ends_only_what_is_complete(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    a, aa = (tokenizer.token_to_id(text) for text in ("a", "aa"))
    for sampling in (SamplingParams(end_id=a), SamplingParams(end_id=END, stop_token_ids=(a,))):
        state = vocabulary.compile("regex", "(aa)+").constraint(sampling)
        assert state.forbidden()[a] and not state.forbidden()[aa]
        assert state.take(aa)
        assert not state.forbidden()[a]


def test_a_grammar_is_not_changed_by_outputs(vocabulary: Vocabulary) -> None:
    grammar = vocabulary.compile("regex", CODE)
    first = grammar.constraint(SamplingParams(end_id=END))
    before = first.forbidden().copy()
    drawn(first, 0)
    assert (grammar.constraint(SamplingParams(end_id=END)).forbidden() == before).all()


def test_pydantics_schemas(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Optional fields, references, and unions with a discriminator, which are `oneOf`."""

    def animal(kind: str, **further: object) -> dict[str, object]:
        properties = {"kind": {"const": kind, "type": "string"}, **further}
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    cat = animal("cat", lives={"type": "integer", "minimum": 0, "maximum": 9})
    dog = animal("dog", name={"type": "string", "maxLength": 9})
    whole = {
        "$defs": {"Cat": cat, "Dog": dog},
        "type": "object",
        "properties": {
            "pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
            "weight": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 99}, {"type": "null"}], "default": None},
        },
        "required": ["pet"],
        "additionalProperties": False,
    }
    grammar = vocabulary.compile("json_schema", json.dumps(whole))
    for seed in range(10):
        text = tokenizer.decode(drawn(grammar.constraint(SamplingParams(end_id=END)), seed))
        jsonschema.validate(json.loads(text), whole)


NESTED = {
    "$defs": {"item": {"type": "array", "uniqueItems": True}},
    "properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/item"}]}},
}


@pytest.mark.parametrize(
    ("guide_type", "guide", "message"),
    [
        ("json_schema", "{", "the JSON schema is not JSON: Expecting property name enclosed in double quotes: line 1 "),
        ("json_schema", "[]", "the JSON schema must be a JSON object"),
        ("json_schema", '{"minimum": NaN}', "the JSON schema is not JSON: NaN is no number of JSON"),
        ("json_schema", '{"items":' * 2000 + "1" + "}" * 2000, "the JSON schema is nested too deeply"),
        ("json_schema", "false", "the JSON schema at #: Unsatisfiable schema: schema is false"),
        ("json_schema", schema(type="objec"), "the JSON schema at #: Invalid type: objec"),
        ("json_schema", schema(properties={"a/b": {"not": {}}}), "the JSON schema at #/properties/a~1b: not is"),
        ("json_schema", schema(items={"if": {}, "then": {}}), "the JSON schema at #/items: if, then is not supported"),
        ("json_schema", json.dumps(NESTED), "the JSON schema at #/$defs/item: uniqueItems is not supported"),
        ("json_schema", schema(allOf=[{}, {"pattern": "(a"}]), "the JSON schema at #/allOf/1: regex parse"),
        ("json_schema", schema(**{"$ref": "#/nowhere"}), "the JSON schema at #: Pointer '/nowhere' does not exist"),
        ("json_schema", schema(**{"$ref": "#"}), "the JSON schema: no text matches it"),
        ("json_schema", '{"x-guidance": {"lenient": true}, "contains": {}}', "the JSON schema at #: contains is not"),
        (
            "json_schema",
            schema(oneOf=[{"$ref": "#/$defs/a"}] * 2, **{"$defs": {"a": {"type": "null"}}}),
            "the JSON schema at #: oneOf is supported only where no value can match two of its schemas",
        ),
        (
            "json_schema",
            schema(oneOf=[{"type": "integer"}, {"minimum": 2}]),
            "the JSON schema at #: oneOf is supported only where no value can match two of its schemas",
        ),
        ("json_schema", schema(type="string", format="iri"), "the JSON schema at #: Unknown format: iri"),
        (
            "json_schema",
            schema(properties={f"p{i}": {"pattern": f".*{i}.{{9,99}}.*b{i}"} for i in range(1200)}),
            "the JSON schema is too complex: initial lexer configuration (grammar) too big",
        ),
        (
            "json_schema",
            schema(allOf=[{"anyOf": [{"properties": {f"p{i}": {"const": k}}} for k in range(3)]} for i in range(9)]),
            "the JSON schema is too complex: schema too large",
        ),
        ("regex", "ab(c", "the regular expression at character 3: unclosed group"),
        ("regex", r"a(?=b)", "the regular expression at character 2: look-around, "),
        ("regex", r"[^\s\S]", "the regular expression: no text matches it"),
        ("choice", '["a", 1]', "the list of choices must be a JSON list of at least one string"),
        ("choice", "[]", "the list of choices must be a JSON list of at least one string"),
        ("choice", "a", "the list of choices is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("ebnf_grammar", 'root ::= "a" x', "the grammar: Rule 'x' not found"),
        ("ebnf_grammar", 'root ::= "a" (\n', "the grammar: Expected ')' at line 2"),
        ("ebnf_grammar", 'start: a\na: "x" b\n', "the grammar at line 2, character 4: unknown name: \"b\""),
        ("ebnf_grammar", "root ::= root", "the grammar: no text matches it"),
    ],
)  # fmt: skip
def test_wrong_guides(vocabulary: Vocabulary, guide_type: GuideType, guide: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        vocabulary.compile(guide_type, guide)
    assert str(caught.value).startswith(message), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"guide_type": "xml"}, "guide_type ('xml') must be one of json, json_schema, regex, ebnf_grammar, choice"),
        ({"guide_type": "regex"}, "guide is missing: guide_type regex needs one"),
        ({"guide": "a"}, "guide must be empty where guide_type is not given"),
        ({"guide_type": "json", "guide": "{}"}, "guide must be empty where guide_type is json"),
        ({"guide_type": "json_schema", "guide": {}}, "guide ({}) must be a text"),
        ({"guide_type": "regex", "guide": "\ud800"}, "guide is not valid UTF-8: it contains an unpaired surrogate"),
        ({"guide_type": "regex", "guide": "é" * 32769}, "guide has 65538 bytes, but must have at most 65536"),
    ],
)
def test_wrong_fields(sampling: dict[str, str], message: str) -> None:
    assert list(sampling_problems(SamplingParams(**sampling), 100)) == [message]  # type: ignore[arg-type]


def test_a_grammar_that_becomes_too_complex_ends_its_output(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Each further `x` can be read in more ways."""
    state, x = constraint(vocabulary, "ebnf_grammar", "start: s\ns: s s | s s s | /x/\n"), tokenizer.token_to_id("x")
    assert state.error is None
    while not state.forbidden().all():
        assert state.take(x)
    assert state.error is not None and state.error.startswith("guide: ") and "\n" not in state.error
