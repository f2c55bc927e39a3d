"""The front door beside Triton's: OpenAI's endpoints, and a page for people. It asks `tensorrt_llm` itself, by gRPC
streams, so that a client that goes away frees its slot."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from aiohttp import web
from grpc.aio import AioRpcError
from tritonclient.utils import InferenceServerException

from trtllm_pt.checkpoint.tokenizer import end_ids, load_tokenizer
from trtllm_pt.engine import EngineManifest, inspect
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.messages import Request
from trtllm_pt.runtime.limits import Limits
from trtllm_pt.runtime.stream import TextStream
from trtllm_pt.serving.completions import Completion, Texts, Wanted
from trtllm_pt.serving.words import pack

_BODY_BYTES = 8 << 20
_PAGE = Path(__file__).parent / "page.html"
_TYPES = {"int32": "INT32", "float32": "FP32", "bool": "BOOL", "uint64": "UINT64"}
_HEALTH_SECONDS = 10.0  # in which a model must answer a request that asks for nothing
_BUSY = ("the queue is full", "the engine is down")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Something new of one choice."""

    index: int
    text: str
    tokens: int
    finish_reason: str | None = None


class Front:
    """OpenAI's endpoints over a running Triton. engines: the directory that it serves; name: the model's."""

    def __init__(self, engines: Path, name: str, grpc_url: str) -> None:
        manifest = EngineManifest.from_dir(engines)
        folder = engines / "tokenizer"
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise UsageError(f"there is no tokenizer.json in {folder}")
        end_id, further = end_ids(folder)
        self._texts = Texts(
            tokenizer=tokenizer, end_id=end_id, further_ends=further, max_seq_len=manifest.max_seq_len, folder=folder
        )
        self._limits = Limits.of(manifest)
        shown = ("ranks", "tracks", "sync_points", "tensor_parallel_sync_points", "schedule")
        self._facts = {name: value for name, value in inspect(engines).items() if name in shown}
        self._embedded = manifest.kind == "embedded"
        self._name, self._url, self._began = name, grpc_url, int(time.time())

    @contextmanager
    def listening(self, host: str, port: int) -> Iterator[None]:
        """Serves from a thread of its own until the end of the block."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(host, port), loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(runner), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    async def _start(self, host: str, port: int) -> web.AppRunner:
        self._client = grpc.InferenceServerClient(self._url)
        app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors])
        app.router.add_get("/", _page)
        app.router.add_get("/engine", self._engine)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        for kind in ("completions", "chat/completions"):
            app.router.add_post(f"/v1/{kind}", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await self._stop(runner)
            raise UsageError(f"--openai-port ({port}) cannot be used: {error.strerror}") from None
        return runner

    async def _stop(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        await self._client.close()

    async def _engine(self, _: web.Request) -> web.Response:
        """What the page shows of it."""
        return web.json_response({"model": self._name, **self._facts})

    async def _health(self, _: web.Request) -> web.Response:
        """Whether the engine answers. Triton calls a model ready whose process or ranks are dead."""
        try:
            await asyncio.wait_for(self._check(), _HEALTH_SECONDS)
        except (asyncio.TimeoutError, InferenceServerException, RunError) as error:
            raise _Failed(503, f"tensorrt_llm does not answer: {error}") from None
        return web.json_response({"status": "ok"})

    async def _check(self) -> None:
        if not self._embedded:
            if not await self._client.is_model_ready("tensorrt_llm"):
                raise RunError("it is not ready")
            return

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "tensorrt_llm", "inputs": _nothing(), "request_id": "health"}

        answers = self._client.stream_infer(requests())
        try:
            async for _, error in answers:
                if error is not None:
                    raise RunError(error.message())
        finally:
            answers.cancel()  # else Triton waits for this stream when it is told to end

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": self._began, "owned_by": "trtllm_pt"}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.removeprefix("/v1/")
        body = await _json(request)
        model = body.get("model", self._name) if isinstance(body, dict) else self._name
        if model != self._name:
            raise _Failed(404, f"model ({model!r}) is not served here: it is {self._name!r}")
        wanted = self._texts.wanted(kind, body)
        for number, choice in enumerate(wanted.choices):
            self._limits.check(Request(id=number, token_ids=choice.prompt, sampling=choice.sampling))
        answer = _Answer(kind, self._name, wanted)
        async with aclosing(self._pieces(wanted)) as pieces:
            return await (_stream(request, answer, pieces) if wanted.stream else _whole(answer, pieces))

    async def _pieces(self, wanted: Wanted) -> AsyncGenerator[_Piece, None]:
        """Those of all choices, as they come."""
        ready: asyncio.Queue[_Piece | Exception] = asyncio.Queue()

        async def one(index: int, choice: Completion) -> None:
            try:
                async with aclosing(self._generate(index, choice)) as pieces:
                    async for piece in pieces:
                        await ready.put(piece)
            except Exception as error:
                await ready.put(error)

        tasks = [asyncio.create_task(one(index, choice)) for index, choice in enumerate(wanted.choices)]
        try:
            left = len(tasks)
            while left:
                piece = await ready.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.finish_reason is not None
                yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, index: int, choice: Completion) -> AsyncGenerator[_Piece, None]:
        text = TextStream(self._texts.tokenizer, choice.stop)
        made = 0

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "tensorrt_llm", "inputs": _inputs(choice)}

        answers = self._client.stream_infer(requests())
        try:
            async for result, error in answers:
                if error is not None:
                    raise RunError(error.message())
                ids = result.as_numpy("output_ids").ravel().tolist()
                made += len(ids)
                delta = text.push(ids)
                if text.stopped:
                    yield _Piece(index, delta, len(ids), "stop")
                    return
                yield _Piece(index, delta, len(ids))
            full = made >= choice.sampling.max_tokens
            yield _Piece(index, text.flush(), 0, "length" if full else "stop")
        finally:
            answers.cancel()


async def _page(_: web.Request) -> web.Response:
    return web.Response(text=_PAGE.read_text(), content_type="text/html")


def _inputs(choice: Completion) -> list[grpc.InferInput]:
    sampling = choice.sampling
    arrays = {
        "input_ids": np.array([choice.prompt], np.int32),
        "input_lengths": _scalar(len(choice.prompt), np.int32),
        "request_output_len": _scalar(sampling.max_tokens, np.int32),
        "end_id": _scalar(-1 if sampling.end_id is None else sampling.end_id, np.int32),
        "streaming": _scalar(True, np.bool_),
        "repetition_penalty": _scalar(sampling.repetition_penalty, np.float32),
        "presence_penalty": _scalar(sampling.presence_penalty, np.float32),
        "frequency_penalty": _scalar(sampling.frequency_penalty, np.float32),
        "min_tokens": _scalar(sampling.min_tokens, np.int32),
        "seed": _scalar(sampling.seed, np.uint64),
    }
    if sampling.temperature > 0:
        arrays["temperature"] = _scalar(sampling.temperature, np.float32)
        arrays["runtime_top_k"] = _scalar(sampling.top_k, np.int32)
        arrays["runtime_top_p"] = _scalar(sampling.top_p, np.float32)
    if sampling.stop_words:
        arrays["stop_words_list"] = pack([sampling.stop_words])
    return _tensors(arrays)


def _nothing() -> list[grpc.InferInput]:
    """Asks the model to end a request that nobody made."""
    one = _scalar(1, np.int32)
    return _tensors(
        {"stop": _scalar(True, np.bool_), "input_ids": one, "input_lengths": one, "request_output_len": one}
    )


def _tensors(arrays: dict[str, Any]) -> list[grpc.InferInput]:
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, list(array.shape), _TYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _scalar(value: float, kind: type) -> Any:
    return np.array([[value]], kind)


class _Answer:
    """The bodies of one request's answer."""

    def __init__(self, kind: str, model: str, wanted: Wanted) -> None:
        self._chat = kind == "chat/completions"
        self.wanted = wanted
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._model, self._created = model, int(time.time())
        self.tokens = 0

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        choices = [
            {"index": i, "finish_reason": reason, "logprobs": None}
            | ({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text})
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    def part(self, index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        new = {"delta": {**role, "content": text}} if self._chat else {"text": text}
        choice = {"index": index, "finish_reason": reason, "logprobs": None, **new}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_part(self) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self) -> dict[str, int]:
        prompt = sum({id(c.prompt): len(c.prompt) for c in self.wanted.choices}.values())
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}


async def _whole(answer: _Answer, pieces: AsyncIterator[_Piece]) -> web.Response:
    texts = [choice.echo for choice in answer.wanted.choices]
    reasons = [""] * len(texts)
    async for piece in pieces:
        texts[piece.index] += piece.text
        answer.tokens += piece.tokens
        reasons[piece.index] = piece.finish_reason or ""
    return web.json_response(answer.whole(texts, reasons))


async def _stream(request: web.Request, answer: _Answer, pieces: AsyncIterator[_Piece]) -> web.StreamResponse:
    """Server-sent events. An error before the first is an HTTP error, a later one an event."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    started: set[int] = set()
    try:
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(request)
            first = piece.index not in started
            started.add(piece.index)
            answer.tokens += piece.tokens
            text = (answer.wanted.choices[piece.index].echo if first else "") + piece.text
            if text or first or piece.finish_reason:
                await _event(response, answer.part(piece.index, text, piece.finish_reason, first))
    except (RunError, UsageError) as error:
        if not response.prepared:
            raise
        await _event(response, _body(_status(error), str(error)))
        return response
    if answer.wanted.usage:
        await _event(response, answer.usage_part())
    await response.write(b"data: [DONE]\n\n")
    return response


async def _event(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(data)}\n\n".encode())


class _Failed(RunError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Every error as OpenAI's clients know it."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except web.HTTPException as error:
        status, message = error.status, error.reason
    except (RunError, UsageError) as error:
        status, message = _status(error), str(error)
    except AioRpcError as error:  # a server that is gone
        status, message = 503, f"Triton does not answer: {error.details()}"
    return web.json_response(_body(status, message), status=status)


def _status(error: Exception) -> int:
    if isinstance(error, _Failed):
        return error.status
    return 503 if str(error).startswith(_BUSY) else 400


def _body(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}") from None
