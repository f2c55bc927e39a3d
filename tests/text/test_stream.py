"""Text in pieces: joined they are the whole."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.text.tokenizers import TEXT, TOKENIZERS
from trtllm_pt.errors import UsageError
from trtllm_pt.text.stream import Continuation, TextStream


def pieces(stream: TextStream, ids: list[int], sizes: list[int] | None = None) -> list[str]:
    """Push in messages of these sizes (default: one token each), then flush."""
    out = []
    for size in sizes or [1] * len(ids):
        out.append(stream.push(ids[:size]))
        ids = ids[size:]
    return [*out, stream.flush()]


def test_a_text_with_split_characters() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode(TEXT).ids
    deltas = pieces(TextStream(tokenizer), ids)
    assert "".join(deltas) == TEXT
    assert "" in deltas and deltas[-1] == ""  # some tokens end inside a character; nothing is left for the end
    assert all("\ufffd" not in delta or delta.startswith("\ufffd") for delta in deltas)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens(name: str, skip: bool) -> None:
    """Also what no text encodes to: broken characters, special tokens in the middle, bytes in any order."""
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(0, tokenizer.get_vocab_size(), int(rng.integers(0, 30))).tolist()
        if name == "byte fallback":  # runs that are characters, beside runs that are not
            half = [i for character in rng.choice(list("é你🚀 "), 4) for i in bytes_of(tokenizer, character)]
            ids = [*ids[:9], *half, *ids[9:]]
        stream = TextStream(tokenizer, skip_special_tokens=skip)
        assert "".join(pieces(stream, ids)) == tokenizer.decode(ids, skip_special_tokens=skip), ids


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens_after_a_prompt(name: str, skip: bool) -> None:
    """The text is what the tokens add to the prompt's, whose end may be the first half of a character."""
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    for _ in range(300):
        size = tokenizer.get_vocab_size()
        prompt, ids = (rng.integers(0, size, int(rng.integers(0, 20))).tolist() for _ in range(2))
        if name == "byte fallback":
            character = bytes_of(tokenizer, rng.choice(list("é你🚀 ")))
            cut = int(rng.integers(0, len(character) + 1))
            prompt, ids = [*prompt, *character[:cut]], [*character[cut:], *ids]
        before = tokenizer.decode(prompt, skip_special_tokens=skip)
        whole = tokenizer.decode([*prompt, *ids], skip_special_tokens=skip)
        shared = next(n for n in range(len(before), -1, -1) if whole.startswith(before[:n]))
        stream = TextStream(tokenizer, prompt=prompt, skip_special_tokens=skip)
        assert "".join(pieces(stream, ids)) == whole[shared:], (prompt, ids)


def bytes_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]


def test_a_run_of_bytes_leaves_when_it_is_over() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    c = tokenizer.token_to_id("c")
    assert pieces(TextStream(tokenizer), [c, *bytes_of(tokenizer, "é"), c]) == ["c", "", "", "éc", ""]


def test_a_skipped_token_does_not_end_a_run() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    (first, second), begin = bytes_of(tokenizer, "é"), tokenizer.token_to_id("<s>")
    c = tokenizer.token_to_id("c")
    assert pieces(TextStream(tokenizer), [first, begin, second, begin, c]) == ["", "", "", "", "éc", ""]


def test_spaces_survive_special_tokens() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    ids = [tokenizer.token_to_id(piece) for piece in ("▁a", "<s>", "▁b", "▁", "<s>", "▁▁", "c")]
    assert "".join(pieces(TextStream(tokenizer), ids)) == tokenizer.decode(ids) == "a b   c"


def test_flush_gives_an_unfinished_character() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a🌍").ids[:-1]  # 🌍 is three tokens
    assert pieces(TextStream(tokenizer), ids)[-1].endswith("\ufffd")


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string to be complete cuts the text."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


def test_stop_strings_split_over_tokens() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("one two three").ids
    for include_stop, wanted in ((False, "one tw"), (True, "one two thr")):
        stream = TextStream(tokenizer, ["o thr"], include_stop=include_stop)
        deltas = pieces(stream, ids)
        assert ("".join(deltas), stream.stopped) == (wanted, True)
        assert stream.push(ids) == "" and stream.flush() == ""  # nothing after the end


def test_the_start_of_a_stop_string_is_held_back_and_freed() -> None:
    tokenizer = TOKENIZERS["byte level"]
    letters = {letter: tokenizer.token_to_id(letter) for letter in "abcx"}
    stream = TextStream(tokenizer, ["abc"])
    assert [stream.push([letters[c]]) for c in "xabab"] == ["x", "", "", "ab", ""]
    assert (stream.flush(), stream.stopped) == ("ab", False)


def test_stop_strings_do_not_depend_on_how_tokens_arrive() -> None:
    tokenizer, rng = TOKENIZERS["byte level"], np.random.default_rng(1)
    found = 0
    for _ in range(400):
        text = "".join(rng.choice(list("abé🚀"), int(rng.integers(1, 25))))
        stops = ["".join(rng.choice(list("abé🚀"), int(rng.integers(1, 6)))) for _ in range(int(rng.integers(1, 4)))]
        ids = tokenizer.encode(text).ids
        sizes = rng.multinomial(len(ids), np.ones(8) / 8).tolist()
        for split in (None, [len(ids)], sizes):
            stream = TextStream(tokenizer, stops)
            assert ("".join(pieces(stream, ids, split)), stream.stopped) == expected(text, stops)
        found += stream.stopped
    assert 50 < found < 390


def test_a_stop_string_in_the_flushed_text() -> None:
    tokenizer = TOKENIZERS["byte fallback"]
    stream = TextStream(tokenizer, ["é"])
    assert "".join(pieces(stream, [tokenizer.token_to_id("c"), *bytes_of(tokenizer, "éd")])) == "c" and stream.stopped


@pytest.mark.parametrize("stop", ["word", [""], [1]])
def test_stop_strings_refused(stop: object) -> None:
    with pytest.raises(UsageError, match="must be a list of non-empty strings"):
        TextStream(TOKENIZERS["byte level"], stop)  # type: ignore[arg-type]


def test_tokens_whose_predecessors_are_not_known() -> None:
    for name, token, wanted in (
        ("byte fallback", "▁world", " world"),
        ("byte fallback", "c", "c"),
        ("unigram", "▁world", " world"),
        ("unigram", "s", "s"),
        ("word piece", "world", " world"),
        ("word piece", "##s", "s"),
        ("byte level", "Ġ", " "),
    ):
        tokenizer = TOKENIZERS[name]
        assert Continuation(tokenizer).decode([tokenizer.token_to_id(token)]) == wanted, (name, token)
        assert Continuation(tokenizer).decode([]) == ""
    whole = TOKENIZERS["byte fallback"].encode("Hello world").ids
    assert Continuation(TOKENIZERS["byte fallback"]).decode(whole) == "Hello world"
    assert Continuation(TOKENIZERS["byte fallback"]).decode(whole[1:]) == " Hello world"


def test_a_vocabulary_that_cannot_encode_every_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"yes": 0, "no": 1}))
    assert Continuation(tokenizer).decode([1]) == " no"
