"""Decodes tokens to text, piece by piece. The joined pieces equal the decoded output, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError

UNFINISHED = "\ufffd"  # what a tokenizer returns for a character whose last bytes are missing


class TextStream:
    """Decodes the tokens of one output incrementally.

    `push` returns the new text that later tokens cannot change, and `flush` returns the rest at the end. When a stop
    string is complete, `stopped_by` is set to it: the text ends before the stop string, and the caller should cancel
    the request. If several stop strings match, the one that completes first wins, and the longest of those that
    complete at the same character, so that the text does not depend on how tokens are grouped. Raises UsageError for a
    `stop` that is not a list of non-empty strings.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
            raise UsageError(f"stop ({stop!r}) must be a list of non-empty strings")
        self.stopped_by: str | None = None
        self._decoder = _Decoder(tokenizer, skip_special_tokens)
        self._stop = tuple(stop)
        self._held = ""  # decoded text that may be the start of a stop string

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens. Returns the new text, which is empty while later tokens could still change it."""
        if self.stopped:
            return ""
        return self._release("".join(map(self._decoder.push, token_ids)))

    def flush(self) -> str:
        """Return the text that was held back. Call this once, at the end of the output."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        """Add decoded text. Returns the text that cannot be part of a stop string any more."""
        if not self._stop:
            return text
        text, self._held = self._held + text, ""
        matches = [(at + len(word), at, word) for word in self._stop if (at := text.find(word)) >= 0]
        if matches:
            _, at, self.stopped_by = min(matches)
            return text[:at]
        held = max(_overlap(text, word) for word in self._stop)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, word: str) -> int:
    """Return how many characters at the end of `text` are a proper prefix of `word`."""
    return next(n for n in range(min(len(word) - 1, len(text)), -1, -1) if text.endswith(word[:n]))


class _Decoder:
    """Decodes token by token, in whole characters.

    It decodes a window of tokens that starts with those of the last piece of text, because a token's neighbours decide
    on its spaces, and ends with the newest token. A piece is returned when it does not end within a character. Tokens
    of single bytes (<0x41>) decode as a run, all or nothing, so the piece waits for the end of the run; the text of
    other tokens must not end in U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._hold = _byte_tokens(tokenizer)
        if skip_special_tokens:  # special tokens have no text, so they do not end a run of bytes
            added = tokenizer.get_added_tokens_decoder()
            self._hold |= {token for token, info in added.items() if info.special}
        self._ids: list[int] = []
        self._window = 0  # index of the first token that is decoded again
        self._read = 0  # index of the first token whose text was not returned yet
        self._out = ""

    def push(self, token: int) -> str:
        self._ids.append(token)
        if token in self._hold:
            return ""
        before = self._decode(self._ids[self._window : self._read])
        text = self._decode(self._ids[self._window :])
        if len(text) <= len(before) or text.endswith(UNFINISHED) or not text.startswith(before):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._emit(text[len(before) :])

    def flush(self) -> str:
        text = self._decode(self._ids)
        self._window = self._read = len(self._ids)
        return self._emit(text[len(self._out) :])

    def _emit(self, delta: str) -> str:
        self._out += delta
        return delta

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


def _byte_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens of single bytes, which only a vocabulary with byte fallback has."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)
