"""From tokens to text, piece by piece: the pieces joined are the decode of the whole, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError

UNFINISHED = "\ufffd"  # what a tokenizer makes of a character whose last bytes are still to come


class TextStream:
    """The text of one output, in deltas.

    `push` returns the text that is certain by now, `flush` the rest at the end. `stopped_by` is set once a stop string
    was complete: the text ends before it and the request should be cancelled. Of several stop strings the one that is
    complete first counts (at the same place: the longest), so the text does not depend on how tokens arrive.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
            raise UsageError(f"stop ({stop!r}) must be a list of strings that are not empty")
        self.stopped_by: str | None = None
        self._decoder = _Decoder(tokenizer, skip_special_tokens)
        self._stop = tuple(stop)
        self._held = ""  # decoded, and perhaps the start of a stop string

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_ids: Iterable[int]) -> str:
        """Take in new tokens; the new text, "" while nothing is certain."""
        if self.stopped:
            return ""
        return self._release("".join(map(self._decoder.push, token_ids)))

    def flush(self) -> str:
        """The text held back, at the end of the output."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        """Add text; what can leave."""
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
    """Characters at the end of `text` that are the start of `word`, but not all of it."""
    return next(n for n in range(min(len(word) - 1, len(text)), -1, -1) if text.endswith(word[:n]))


class _Decoder:
    """Decodes token by token in a window: from the tokens that made the last piece of text (their neighbours decide on
    spaces) to the newest. A piece leaves when it is not the start of a character: tokens of single bytes (<0x41>)
    decode as a run, all or nothing, so the run must be over; elsewhere the text must not end in U+FFFD."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._hold = _byte_tokens(tokenizer)
        if skip_special_tokens:  # they make no text, so they do not end a run of bytes
            added = tokenizer.get_added_tokens_decoder()
            self._hold |= {token for token, info in added.items() if info.special}
        self._ids: list[int] = []
        self._window = 0  # the tokens from here on are decoded
        self._read = 0  # the text of those before is out
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
    """The tokens of single bytes in a vocabulary with byte fallback; none elsewhere."""
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)
