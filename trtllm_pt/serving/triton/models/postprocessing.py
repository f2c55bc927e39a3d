"""The model `postprocessing`: it decodes token ids to text. Triton runs it in a Python process of its own.

It decodes each response separately, so a character of several tokens is whole only if one response has all of them. The
model `tensorrt_llm_bls` joins tokens across responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.serving.triton.models.base import Config, arrays, error_response, parameters, response, strings
from trtllm_pt.serving.triton.process_guard import ProcessGuard
from trtllm_pt.text.stream import Continuation
from trtllm_pt.text.tokenizer import load_tokenizer


class TritonPythonModel:
    """The model, with the methods that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        config = Config(args)
        tokenizer = load_tokenizer(config.path("tokenizer_dir"), required=True)
        self._text = Continuation(tokenizer, config.flag("skip_special_tokens", True))
        self._guard = ProcessGuard(config.name)

    def finalize(self) -> None:
        self._guard.end()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            parameters(request)
        except UsageError as error:
            return error_response(str(error))
        tensors = arrays(request)
        rows = zip(tensors["TOKENS_BATCH"], tensors["SEQUENCE_LENGTH"], strict=True)
        ids = [beam[:length] for beams, lengths in rows for beam, length in zip(beams, lengths, strict=True)]
        return response({"OUTPUT": strings([self._text.decode(beam.tolist()) for beam in ids])})
