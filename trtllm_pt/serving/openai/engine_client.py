"""The OpenAI port's gRPC client of the model `tensorrt_llm`.

A stream is always read to its end; to end it early, the client sends the engine a `stop`. Cancelling would be simpler,
but if a cancellation coincides with the last response, Triton 2.51 keeps the request and its model forever, and
sometimes crashes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from grpc.aio import AioRpcError
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from trtllm_pt.requests.fields import NUMBERS, PARAMETERS, given_numbers
from trtllm_pt.requests.messages import SamplingParams, TokenScore, TopLogProbs
from trtllm_pt.serving.error_codes import ServedError
from trtllm_pt.serving.openai.requests import Choice, CompletionRequest
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.word_lists import pack
from trtllm_pt.text.stream import TextStream

_MODEL = tensors.ENGINE
_DTYPES: Mapping[str, type] = {"INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_, "UINT64": np.uint64}
_TYPES = {"object": "BYTES", **{np.dtype(dtype).name: name for name, dtype in _DTYPES.items()}}
# No proxy of the environment (gRPC reads http_proxy, too), and messages of any length. Without a list of options, the
# client would set its own.
_CHANNEL = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
_PATIENCE_SECONDS = 0.1  # between two `stop` requests for the same request
_LAST_SECONDS = 2.0  # in which `close` waits for streams that are being stopped


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one choice.

    index: the number of the choice. token_ids: the tokens that were generated for the text. scores: one per token if
    requested. finish_reason: `stop` or `length` in the last piece of a choice, else None. prompt_scores: if requested,
    those of the prompt's tokens from the second on, in the first piece of a choice. cached_tokens: tokens of the prompt
    that were found in the KV cache; None: the engine does not say.
    """

    index: int
    text: str
    token_ids: Sequence[int] = ()
    scores: Sequence[TokenScore] = ()
    finish_reason: str | None = None
    prompt_scores: Sequence[TokenScore] = ()
    cached_tokens: int | None = None


class EngineClient:
    """A client of the Triton at the gRPC address `url` (HOST:PORT). It belongs to the running event loop.

    vocab_size: that of the engine.
    """

    def __init__(self, url: str, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._client = grpc.InferenceServerClient(url, channel_args=_CHANNEL)
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._tasks: set[asyncio.Task[None]] = set()  # they can outlive the HTTP request that started them

    async def close(self) -> None:
        """Wait a short time for streams that are being stopped, and close the connection."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_SECONDS)
        await self._client.close()

    async def check_alive(self) -> None:
        """Send the model a `stop` for an id that no request has. Raises ServedError if the model does not work."""
        await self._ask_to_end("health")

    async def check_ready(self) -> None:
        """Ask Triton whether the model is ready. Raises ServedError if it is not."""
        try:
            ready = await self._client.is_model_ready(_MODEL)
        except InferenceServerException as error:
            raise _no_answer(error.message()) from None
        if not ready:
            raise ServedError("unavailable", f"model {_MODEL} is not ready")

    async def pieces(self, request_id: str, wanted: CompletionRequest) -> AsyncGenerator[Piece, None]:
        """Generate all choices of a request and yield their pieces as they arrive.

        A generator that is closed early stops the engine's requests. Raises ServedError, with the model's message and
        code, if one of the choices fails.
        """
        ready: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def one(index: int, choice: Choice, name: str) -> None:
            try:
                async for piece in self._choice(index, choice, name):
                    ready.put_nowait(piece)
            except Exception as error:
                ready.put_nowait(error)

        names = [request_id] if len(wanted.choices) == 1 else [f"{request_id}-{i}" for i in range(len(wanted.choices))]
        tasks = [
            self._begin(one(index, choice, name))
            for index, (choice, name) in enumerate(zip(wanted.choices, names, strict=True))
        ]
        try:
            left = len(tasks)
            while left:
                piece = await ready.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.finish_reason is not None
                yield piece
        finally:
            for name, task in zip(names, tasks, strict=True):
                if not task.done():
                    self._begin(self._end(name, task))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _choice(self, index: int, choice: Choice, name: str) -> AsyncGenerator[Piece, None]:
        sampling = choice.sampling
        text = TextStream(
            self._tokenizer,
            choice.stop,
            prompt=choice.prompt,
            min_tokens=sampling.min_tokens,
            skip_special_tokens=choice.skip_special_tokens,
            include_stop=sampling.include_stop_words,
        )
        cached = None
        async for result in self._ask(_inputs(choice, self._vocab_size), name, _parameters(sampling)):
            if text.stopped:
                continue  # the engine has not stopped the request yet
            ids = result.as_numpy("output_ids").ravel().tolist()
            # Further end tokens are stop words of one token for Triton's models, which return them.
            before, kept = text.tokens, itertools.takewhile(lambda token: token not in sampling.stop_token_ids, ids)
            delta = text.push(kept)
            new = text.tokens - before
            scores = _scores(result, len(ids))[:new] if sampling.log_probs else ()
            if text.stopped and (task := asyncio.current_task()) is not None:
                self._begin(self._end(name, task))
            reason = "stop" if text.stopped else None
            cached = _number(result, "num_cached_tokens")
            yield Piece(index, delta, ids[:new], scores, reason, _prompt_scores(result), cached)
        if not text.stopped:
            rest = text.flush()  # which may complete a stop string
            full = text.tokens >= sampling.max_tokens and not text.stopped
            yield Piece(index, rest, finish_reason="length" if full else "stop", cached_tokens=cached)

    async def _end(self, name: str, task: asyncio.Task[Any]) -> None:
        """Send `stop` for the request `name`, which `task` reads, until the task is done.

        One `stop` may not be enough, because the request may not have reached the model yet.
        """
        while not task.done():
            with suppress(ServedError):
                await self._ask_to_end(name)
            await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)

    async def _ask_to_end(self, name: str) -> None:
        one = _scalar(1, np.int32)
        stop = {"stop": _scalar(True, np.bool_), "input_ids": one, "input_lengths": one, "request_output_len": one}
        async for _ in self._ask(_tensors(stop), name):
            pass

    async def _ask(
        self, inputs: list[grpc.InferInput], name: str, parameters: Mapping[str, float | str] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Yield the responses to one request. At the end, raises ServedError if one of them was an error."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": _MODEL, "inputs": inputs, "request_id": name, "parameters": parameters}

        failed = None
        try:
            async for result, error in self._client.stream_infer(requests()):
                failed = failed or error
                if failed is None:
                    yield result
        except AioRpcError as error:
            raise _no_answer(error.details()) from None
        if failed is not None:
            raise ServedError.parse(failed.message())


def _no_answer(reason: str | None) -> ServedError:
    return ServedError("unavailable", f"Triton does not answer: {reason}")


def _parameters(sampling: SamplingParams) -> dict[str, float | str]:
    """Return the fields that have no tensor. Our own model reads them as parameters of a request."""
    numbers = {field.parameter: value for field, value in given_numbers(sampling) if not field.tensor}
    others = {field.parameter: getattr(sampling, field.name) for field in PARAMETERS if field not in NUMBERS}
    return numbers | {name: value for name, value in others.items() if value}


def _inputs(choice: Choice, vocab_size: int) -> list[grpc.InferInput]:
    sampling = choice.sampling
    arrays = {
        "input_ids": np.array([choice.prompt], np.int32),
        "input_lengths": _scalar(len(choice.prompt), np.int32),
        "end_id": _scalar(-1 if sampling.end_id is None else sampling.end_id, np.int32),
        "streaming": _scalar(True, np.bool_),
        "return_num_input_tokens": _scalar(True, np.bool_),
    }
    for field, value in given_numbers(sampling):
        if field.tensor:
            arrays[field.tensor] = _scalar(value, _DTYPES[field.tensor_type])
    if sampling.log_probs:
        arrays["return_log_probs"] = _scalar(True, np.bool_)
    for name, text in ("guided_decoding_guide_type", sampling.guide_type), ("guided_decoding_guide", sampling.guide):
        if text:
            arrays[name] = np.array([[text.encode()]], object)
    if sampling.stop_token_ids:
        arrays["stop_words_list"] = pack([[(token,) for token in sampling.stop_token_ids]])
    if sampling.logit_bias:
        arrays["embedding_bias"] = np.zeros((1, vocab_size), np.float32)
        for token, bias in sampling.logit_bias:
            arrays["embedding_bias"][0, token] += bias
    return _tensors(arrays)


def _number(result: Any, name: str) -> int | None:
    """Return an output of one number, or None if a response does not have it."""
    found = result.as_numpy(name)
    return None if found is None else int(found.item())


def _scores(result: Any, tokens: int) -> list[TokenScore]:
    """Return the scores of the tokens of a response, which may also have those of earlier tokens."""
    found: list[float] = result.as_numpy("output_log_probs").ravel().tolist()
    top = _top(result, "output", tokens)
    return [TokenScore(*pair) for pair in zip(found[len(found) - tokens :], top, strict=True)]


def _prompt_scores(result: Any) -> list[TokenScore]:
    found = result.as_numpy("context_log_probs")
    if found is None:
        return []
    return [TokenScore(*pair) for pair in zip(found[0].tolist(), _top(result, "context", found.size), strict=True)]


def _top(result: Any, of: str, tokens: int) -> list[TopLogProbs]:
    """Return the likeliest tokens at so many positions, which are empty if a response has none."""
    ids, log_probs = result.as_numpy(f"{of}_top_ids"), result.as_numpy(f"{of}_top_log_probs")
    if ids is None:
        return [()] * tokens
    width = ids.shape[-1]
    rows = zip(ids.reshape(-1, width).tolist(), log_probs.reshape(-1, width).tolist(), strict=True)
    return [tuple((token, p) for token, p in zip(*row, strict=True) if token >= 0) for row in rows]


def _tensors(arrays: dict[str, Any]) -> list[grpc.InferInput]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, list(array.shape), _TYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _scalar(value: float, kind: type) -> Any:
    return np.array([[value]], kind)
