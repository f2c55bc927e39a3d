"""The model `preprocessing`: it encodes text to token ids. Triton runs it in a Python process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.requests.limits import Limits
from trtllm_pt.serving.triton import word_lists
from trtllm_pt.serving.triton.models.base import (
    Array,
    Arrays,
    Config,
    arrays,
    error_response,
    parameters,
    response,
    text,
)
from trtllm_pt.serving.triton.process_guard import ProcessGuard
from trtllm_pt.text.stream import Continuation
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

# Inputs that the model accepts -> their names as inputs of the ensemble, which error messages use.
_TAKEN = {
    "QUERY": "text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
}
# Inputs that the model refuses -> their names as inputs of the ensemble.
_REFUSED = {
    "DECODER_QUERY": "decoder_text_input",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
}


class TritonPythonModel:
    """The model, with the methods that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        config = Config(args)
        manifest = read_engine(config.path("gpt_model_path"))
        self._engine_in_python = manifest.backend.triton_backend == "python"
        self._encoder = Encoder(config.path("tokenizer_dir"), config.flag("add_special_tokens", True), manifest.limits)
        self._guard = ProcessGuard(config.name)

    def finalize(self) -> None:
        self._guard.end()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            given = parameters(request)
            if given and not self._engine_in_python:
                raise UsageError(f"{', '.join(given)} is not supported: the server's backend has no input for it")
            return response(self._encoder.encode(arrays(request)))
        except UsageError as error:
            return error_response(str(error))


class Encoder:
    """Turns texts into token ids with the tokenizer in `folder`.

    limits: those of the engine. A text with more bytes than `max_input_len` tokens can have is refused before it is
    tokenized.
    """

    def __init__(self, folder: Path, add_special_tokens: bool, limits: Limits) -> None:
        self._tokenizer = load_tokenizer(folder, required=True)
        self._special = add_special_tokens
        self._continuation = Continuation(self._tokenizer, skip_special_tokens=False)
        self._vocab_size = limits.vocab_size
        self._most_bytes = most_bytes(self._tokenizer, limits.max_input_len)
        self._end_id, self._further_ends = end_ids(folder)
        self._pad_id = _pad_id(self._tokenizer, folder, self._end_id)

    def encode(self, tensors: Arrays) -> dict[str, Array]:
        """Return the output tensors for one request, with the batch axis.

        Raises UsageError, naming the field, for an input that is not supported, empty, too long, or not UTF-8.
        """
        for name in tensors:
            if name not in _TAKEN:
                raise UsageError(f"{_REFUSED.get(name, name)} is not supported")
        prompts = [self._prompt(row[0]) for row in tensors["QUERY"]]
        ids = np.full((len(prompts), max(map(len, prompts))), self._pad_id, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return {
            "INPUT_ID": ids,
            "REQUEST_INPUT_LEN": np.array([[len(prompt)] for prompt in prompts], np.int32),
            "BAD_WORDS_IDS": self._words(tensors, "BAD_WORDS_DICT", len(prompts)),
            "STOP_WORDS_IDS": self._words(
                tensors, "STOP_WORDS_DICT", len(prompts), self._further_ends if "END_ID" not in tensors else ()
            ),
            "EMBEDDING_BIAS": self._biases(tensors, len(prompts)),
            "REQUEST_OUTPUT_LEN": tensors["REQUEST_OUTPUT_LEN"].astype(np.int32),
            "OUT_END_ID": self._id(tensors, "END_ID", self._end_id, len(prompts)),
            "OUT_PAD_ID": self._id(tensors, "PAD_ID", self._pad_id, len(prompts)),
        }

    def _prompt(self, query: bytes) -> list[int]:
        found = self._tokenizer.encode(self._text(query, "text_input"), add_special_tokens=self._special).ids
        if not found:
            raise UsageError("text_input is empty: a request needs at least one token")
        return found

    def _text(self, value: bytes, name: str) -> str:
        check_bytes(len(value), self._most_bytes, name)
        return text(value, name)

    def _words(self, tensors: Arrays, name: str, rows: int, further: Iterable[int] = ()) -> word_lists.Int32s:
        given = tensors.get(name, np.empty((rows, 0), object))
        lists = [[self._ids_of_word(self._text(word, _TAKEN[name])) for word in row] for row in given]
        return word_lists.pack([[*filter(None, row), *([token] for token in further)] for row in lists])

    def _biases(self, tensors: Arrays, rows: int) -> Array:
        """Return the bias of each token: the sum of the weights of the words that have it. No words: no biases."""
        words, weights = (tensors.get(f"EMBEDDING_BIAS_{name}", np.empty((rows, 0))) for name in ("WORDS", "WEIGHTS"))
        if words.shape != weights.shape:
            raise UsageError(
                f"embedding_bias_words has shape {list(words.shape)}, and embedding_bias_weights "
                f"{list(weights.shape)}: each word needs a weight"
            )
        biases = np.zeros((rows, self._vocab_size if words.size else 0), np.float32)
        for row, (own_words, own_weights) in enumerate(zip(words, weights, strict=True)):
            for word, weight in zip(own_words, own_weights, strict=True):
                np.add.at(biases[row], self._ids_of_word(self._text(word, "embedding_bias_words")), weight)
        return biases

    def _ids_of_word(self, word: str) -> list[int]:
        """Return the tokens of a word within a text. Many tokenizers put a space before a text that has none."""
        shorter = self._tokenizer.encode(word.removeprefix(" "), add_special_tokens=False).ids
        if word.startswith(" ") and self._continuation.decode(shorter) == word:
            return shorter
        return self._tokenizer.encode(word, add_special_tokens=False).ids

    def _id(self, tensors: Arrays, name: str, default: int, rows: int) -> Array:
        return tensors[name] if name in tensors else np.full((rows, 1), default, np.int32)


def most_bytes(tokenizer: Tokenizer, max_input_len: int) -> int:
    """Return the largest number of bytes of `max_input_len` tokens. Tokenizing takes seconds per megabyte of text."""
    return 4 * max_input_len * max(map(len, tokenizer.get_vocab()))  # a character has at most 4 bytes


def check_bytes(number: int, most: int, name: str) -> None:
    """Raise UsageError, with the field's `name`, if a text has more than `most` bytes."""
    if number > most:
        raise UsageError(f"{name} has {number} bytes, but must have at most {most}: max_input_len tokens have no more")


def _pad_id(tokenizer: Tokenizer, folder: Path, end_id: int) -> int:
    """Return the token that pads the shorter rows of a batch. The engine ignores it."""
    path = folder / "tokenizer_config.json"
    token = read_json(path).get("pad_token") if path.exists() else None
    found = tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
    return max(end_id, 0) if found is None else found
