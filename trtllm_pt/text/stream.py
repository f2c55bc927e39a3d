"""Decodes tokens to text, piece by piece. The joined pieces equal the decoded output, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError

UNFINISHED = "\ufffd"  # what a tokenizer returns for a character whose last bytes are missing
_CHARACTER = 4  # the most tokens of a character: one for each byte
_CONTEXT = 32  # the most tokens of a prompt that are searched for a whole text


class TextStream:
    """Decodes the tokens of one output incrementally.

    prompt: the tokens before the output. They decide whether the output's text begins with a space: many tokenizers
    drop the first space of a text. min_tokens: a stop string that is complete within this number of tokens does not
    end the text.

    `push` returns the new text that later tokens cannot change, and `flush` returns the rest at the end. When a stop
    string is complete, `stopped` is set: the text ends before the stop string, or with it if `include_stop` is set, and
    the caller should cancel the request. If several stop strings match, the one that completes first wins, and the
    longest of those that complete at the same character, so that the text does not depend on how tokens are grouped.
    `tokens` counts the output's tokens, up to the one with which a stop string was found. Raises UsageError for a
    `stop` that is not a list of non-empty strings.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        prompt: Sequence[int] = (),
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
            raise UsageError(f"stop ({stop!r}) must be a list of non-empty strings")
        self.stopped = False
        self.tokens = 0
        self._decoder = _Decoder(tokenizer, skip_special_tokens, prompt)
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._spared = 0  # a stop string that ends within so many characters does not end the text
        self._held = ""  # decoded text that may be the start of a stop string

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens. Returns the new text, which is empty while later tokens could still change it."""
        pieces = []
        for token in token_ids:
            if self.stopped:
                break
            self.tokens += 1
            text = self._decoder.push(token)
            if self._stop and self.tokens <= self._min_tokens:
                self._spared = self._decoder.length()
            pieces.append(self._release(text))
        return "".join(pieces)

    def flush(self) -> str:
        """Return the text that was held back. Call this once, at the end of the output."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        rest, self._held = ("" if self.stopped else self._held), ""
        return text + rest

    def _release(self, text: str) -> str:
        """Add decoded text. Returns the text that cannot be part of a stop string any more."""
        if not self._stop:
            return text
        searched, text = len(self._held), self._held + text
        spared = self._spared - (self._decoder.returned - len(text))
        matches = [*_ends(text, self._stop, max(searched, spared))]
        if matches:
            self.stopped = True
            end, at = min(matches)
            return text[: end if self._include_stop else at]
        held = max(overlap(text, word) for word in self._stop)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]


def _ends(text: str, words: Iterable[str], after: int) -> Iterable[tuple[int, int]]:
    """Yield the end and the start of each word's first occurrence that ends beyond `after` characters."""
    for word in words:
        at = text.find(word, max(0, after + 1 - len(word)))
        if at >= 0:
            yield at + len(word), at


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their beginning."""
    return next(n for n in range(len(other), -1, -1) if one.startswith(other[:n]))


def overlap(text: str, word: str) -> int:
    """Return how many characters at the end of `text` are a proper prefix of `word`."""
    return next(n for n in range(min(len(word) - 1, len(text)), -1, -1) if text.endswith(word[:n]))


class _Decoder:
    """Decodes token by token, in whole characters. `returned` counts the characters that it has returned.

    It decodes a window of tokens that starts with those of the last piece of text, because a token's neighbours decide
    on its spaces, and ends with the newest token. A piece is returned when it does not end within a character. Tokens
    of single bytes (<0x41>) decode as a run, all or nothing, so the piece waits for the end of the run; the text of
    other tokens must not end in U+FFFD.

    The first window starts within the prompt. A character whose first tokens are in the prompt belongs to the output.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._hold = _byte_tokens(tokenizer)
        if skip_special_tokens:  # special tokens have no text, so they do not end a run of bytes
            added = tokenizer.get_added_tokens_decoder()
            self._hold |= {token for token, info in added.items() if info.special}
        self._ids = self._end_of(prompt)
        self._window = 0  # index of the first token that is decoded again
        self._read = self._whole(self._ids)  # index of the first token whose text was not returned yet
        self._before = len(self._decode(self._ids[: self._read]))  # characters before the output in the text of _ids
        self._seen = self._decode(self._ids)[self._before :]  # the prompt's text after those characters
        self.returned = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        if token in self._hold:
            return ""
        before = self._decode(self._ids[self._window : self._read])
        text = self._decode(self._ids[self._window :])
        if len(text) <= len(before) or text.endswith(UNFINISHED) or not text.startswith(before):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._return(text[len(before) :])

    def flush(self) -> str:
        rest = self._decode(self._ids)[self._before + self.returned :]
        self._window = self._read = len(self._ids)
        return self._return(rest)

    def length(self) -> int:
        """Return the number of characters of all tokens so far, without an unfinished one."""
        text = self._decode(self._ids)[self._before :].rstrip(UNFINISHED)
        return len(text) - _shared(text, self._seen)

    def _return(self, text: str) -> str:
        if self._seen:  # the first piece of the output begins with what the prompt has shown already
            shown = _shared(text, self._seen)
            self._before += shown
            self._seen, text = "", text[shown:]
        self.returned += len(text)
        return text

    def _end_of(self, prompt: Sequence[int]) -> list[int]:
        """Return the prompt's last tokens, from one on whose text is whole: enough for what follows them."""
        shown = 0
        for at in range(len(prompt) - 1, -1, -1):
            if prompt[at] in self._hold:
                continue
            text = self._decode([prompt[at]])
            shown += 1
            if (text and UNFINISHED not in text) or shown == _CONTEXT:
                return list(prompt[at:])
        return list(prompt)

    def _whole(self, ids: list[int]) -> int:
        """Return the number of the first tokens whose text no later token can change."""
        count = len(ids)
        while count and ids[count - 1] in self._hold:
            count -= 1
        least = max(count - _CHARACTER + 1, 0)
        while count > least and self._decode(ids[:count]).endswith(UNFINISHED):
            count -= 1
        return count

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


def _byte_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens of single bytes, which only a vocabulary with byte fallback has."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)


class Continuation:
    """Decodes tokens whose predecessors are not known: as the continuation of a text.

    Many tokenizers drop the first space of a text, which here is not the first. Tokens that begin with the special
    token that the tokenizer puts before every text are a whole text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self.tokenizer, self._skip = tokenizer, skip_special_tokens
        added = tokenizer.get_added_tokens_decoder()
        special = {token for token, info in added.items() if info.special}
        self._first = special.intersection(tokenizer.encode("").ids[:1])
        unfit = special | _byte_tokens(tokenizer)
        others = (token for token in range(tokenizer.get_vocab_size()) if token not in unfit)
        self._word = next(([token] for token in others if self._decode([token]).isalpha()), [])
        self._before = len(self._decode(self._word))

    def decode(self, ids: list[int]) -> str:
        if not self._first.isdisjoint(ids[:1]):
            return self._decode(ids)
        return self._decode([*self._word, *ids])[self._before :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=self._skip)
