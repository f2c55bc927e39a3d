"""The JSON bodies of OpenAI's responses, whole or as the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from trtllm_pt.requests.messages import TokenScore
from trtllm_pt.serving.openai.engine_client import Piece
from trtllm_pt.serving.openai.requests import CompletionRequest
from trtllm_pt.serving.openai.tools import ToolCalls
from trtllm_pt.text.stream import UNFINISHED, Continuation, TextStream


class Answer:
    """The response to one request. `tokens` counts the generated tokens of all choices.

    kind: `completions` or `chat/completions`. id: of the request. model: its name for clients. words: shows single
    tokens, for log-probs.
    """

    def __init__(self, kind: str, id: str, model: str, wanted: CompletionRequest, words: Continuation) -> None:
        self._chat = kind == "chat/completions"
        self._model, self._created = model, int(time.time())
        self._words = words
        # For the places of tokens in the text of each choice: the text after the tokens so far, and its characters.
        self._texts = [
            TextStream(
                words.tokenizer,
                prompt=() if choice.echo else choice.prompt,
                skip_special_tokens=choice.skip_special_tokens,
            )
            for choice in wanted.choices
        ]
        self._shown = [0] * len(wanted.choices)
        # The choices whose prompt's log-probs are still to be returned.
        self._unscored = [choice.sampling.log_probs and choice.sampling.prompt_log_probs for choice in wanted.choices]
        self._cached: dict[int, int] = {}  # tokens of each prompt that were found in the KV cache, by the prompt's id
        # What finds the tool calls in the text of each choice.
        self._calls = [
            ToolCalls(wanted.tool_format, wanted.tools.several) if wanted.tools and wanted.tool_format else None
            for _ in wanted.choices
        ]
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
            self._number(message.get("tool_calls", ()), piece.index)
            choice["delta"] = message if first else {name: message[name] for name in message if name != "role"}
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.wanted.usage:
            body["usage"] = self._usage() if self.wanted.continuous_usage else None  # the last event has it always
        return body

    def usage_part(self) -> dict[str, Any]:
        """Return the last event of a stream whose client asked for the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _choice(self, piece: Piece, echo: str) -> dict[str, Any]:
        self.tokens += len(piece.token_ids)
        if piece.cached_tokens is not None:
            self._cached.setdefault(id(self.wanted.choices[piece.index].prompt), piece.cached_tokens)
        text = echo + piece.text
        return {
            "index": piece.index,
            "finish_reason": piece.finish_reason,
            "logprobs": self._log_probs(piece),
            **({"text": text} if not self._chat else self._message(piece)),
        }

    def _message(self, piece: Piece) -> dict[str, Any]:
        """Return the message of a chat, and why it ends where it has tool calls."""
        finder = self._calls[piece.index]
        if finder is None:
            return {"message": {"role": "assistant", "content": piece.text}}
        content, calls = finder.push(piece.text, last=piece.finish_reason is not None)
        message = {"role": "assistant", "content": content or None, **({"tool_calls": calls} if calls else {})}
        called = finder.found and piece.finish_reason == "stop"
        return {"message": message, "finish_reason": "tool_calls" if called else piece.finish_reason}

    def _number(self, calls: Sequence[dict[str, Any]], index: int) -> None:
        """Give the calls of an event their numbers among all calls of a choice."""
        finder = self._calls[index]
        for number, call in enumerate(calls, finder.found - len(calls) if finder else 0):
            call["index"] = number

    def _log_probs(self, piece: Piece) -> dict[str, Any] | None:
        """Return the log-probs of a piece's tokens; in the first piece, those of an echoed prompt come before them."""
        choice = self.wanted.choices[piece.index]
        if not choice.sampling.log_probs:
            return None
        scored = list(zip(piece.token_ids, piece.scores, strict=True))
        if self._chat:
            content = [
                {**self._entry(token, score.log_prob), "top_logprobs": [self._entry(*one) for one in score.top]}
                for token, score in scored
            ]
            return {"content": content, "refusal": None}
        if self._unscored[piece.index]:
            self._unscored[piece.index] = False
            prompt = zip(choice.prompt, (None, *piece.prompt_scores), strict=True)
            return self._completion([*prompt, *scored], piece.index)
        return self._completion(scored, piece.index)

    def _completion(self, scored: Sequence[tuple[int, TokenScore | None]], index: int) -> dict[str, Any]:
        """Return the log-probs of tokens in the form of completions. The first token of a prompt has none."""
        words = [self._words.decode([token]) for token, _ in scored]
        offsets = [self._offset(token, word, index) for (token, _), word in zip(scored, words, strict=True)]
        return {
            "tokens": words,
            "token_logprobs": [None if score is None else score.log_prob for _, score in scored],
            "top_logprobs": [None if score is None else self._likeliest(token, score) for token, score in scored],
            "text_offset": offsets,
        }

    def _offset(self, token: int, word: str, index: int) -> int:
        """Return where the next token of a choice begins in its text. Parts of a character begin where it begins."""
        before = self._shown[index]
        self._shown[index] += len(self._texts[index].push([token]))
        # The text of single bytes comes only with the token after them.
        return before if UNFINISHED in word else max(before, self._shown[index] - len(word))

    def _likeliest(self, token: int, score: TokenScore) -> dict[str, float]:
        """Return the log-prob of a token, and those of the likeliest ones. Of tokens that look alike, it has one."""
        found: dict[str, float] = {}
        for one, log_prob in ((token, score.log_prob), *score.top):
            found.setdefault(self._words.decode([one]), log_prob)
        return found

    def _entry(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self._words.decode([token])
        return {"token": text, "logprob": log_prob, "bytes": _bytes(text)}

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self._chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self) -> dict[str, Any]:
        """Return the usage so far. A prompt with several choices counts once."""
        prompt = sum({id(c.prompt): len(c.prompt) for c in self.wanted.choices}.values())
        cached = {"cached_tokens": sum(self._cached.values())} if self._cached else None
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": cached,
        }


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Return the pieces of one choice, of which there is at least one, as one piece."""
    return Piece(
        pieces[0].index,
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.token_ids],
        [score for piece in pieces for score in piece.scores],
        pieces[-1].finish_reason,
        pieces[0].prompt_scores,
        pieces[-1].cached_tokens,
    )


def _bytes(text: str) -> list[int] | None:
    """Return the bytes of a token, or None for a part of a character."""
    return None if UNFINISHED in text else list(text.encode())
