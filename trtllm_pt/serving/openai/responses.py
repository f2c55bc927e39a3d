"""The JSON bodies of OpenAI's responses, whole or as the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from trtllm_pt.serving.openai.engine_client import Piece
from trtllm_pt.serving.openai.requests import CompletionRequest
from trtllm_pt.text.stream import UNFINISHED, Continuation


class Answer:
    """The response to one request. `tokens` counts the generated tokens of all choices.

    kind: `completions` or `chat/completions`. id: of the request. model: its name for clients. words: shows single
    tokens, for log-probs.
    """

    def __init__(self, kind: str, id: str, model: str, wanted: CompletionRequest, words: Continuation) -> None:
        self._chat = kind == "chat/completions"
        self._model, self._created = model, int(time.time())
        self._words = words
        self._shown = [0] * len(wanted.choices)  # characters of the tokens of each choice so far
        self.id, self.wanted = id, wanted
        self.tokens = 0

    def whole(self, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
        """Return the body of a response that is not streamed. pieces: those of each choice."""
        choices = [
            self._choice(_joined(own), choice.echo) for own, choice in zip(pieces, self.wanted.choices, strict=True)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    def part(self, piece: Piece, first: bool) -> dict[str, Any]:
        """Return one event of a stream. first: whether it is the first event of its choice."""
        choice = self._choice(piece, self.wanted.choices[piece.index].echo if first else "")
        if self._chat:
            message = choice.pop("message")
            choice["delta"] = message if first else {"content": message["content"]}
        usage = {"usage": None} if self.wanted.usage else {}  # the last event has it
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def usage_part(self) -> dict[str, Any]:
        """Return the last event of a stream whose client asked for the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _choice(self, piece: Piece, echo: str) -> dict[str, Any]:
        self.tokens += len(piece.token_ids)
        text = echo + piece.text
        return {
            "index": piece.index,
            "finish_reason": piece.finish_reason,
            "logprobs": self._log_probs(piece),
            **({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}),
        }

    def _log_probs(self, piece: Piece) -> dict[str, Any] | None:
        """Return the log-probs of a piece's tokens. Those of tokens that were not chosen are not known."""
        if not self.wanted.choices[piece.index].sampling.log_probs:
            return None
        each = [(self._words.decode([token]), p) for token, p in zip(piece.token_ids, piece.log_probs, strict=True)]
        if self._chat:
            content = [{"token": text, "logprob": p, "bytes": _bytes(text), "top_logprobs": []} for text, p in each]
            return {"content": content, "refusal": None}
        offsets = []
        for text, _ in each:
            offsets.append(self._shown[piece.index])
            self._shown[piece.index] += len(text)
        return {
            "tokens": [text for text, _ in each],
            "token_logprobs": [p for _, p in each],
            "top_logprobs": [{text: p} for text, p in each],
            "text_offset": offsets,
        }

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self._chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self) -> dict[str, int]:
        prompt = sum({id(c.prompt): len(c.prompt) for c in self.wanted.choices}.values())
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Return the pieces of one choice, of which there is at least one, as one piece."""
    return Piece(
        pieces[0].index,
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.token_ids],
        [p for piece in pieces for p in piece.log_probs],
        pieces[-1].finish_reason,
    )


def _bytes(text: str) -> list[int] | None:
    """Return the bytes of a token, or None for a part of a character."""
    return None if UNFINISHED in text else list(text.encode())
