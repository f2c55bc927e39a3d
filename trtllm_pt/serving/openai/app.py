"""The OpenAI port: OpenAI's endpoints and a web page for prompts. It runs in the process of `serve`.

It sends its requests to the model `tensorrt_llm` itself, so that it can stop the request of a client that disconnects.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any

from aiohttp import web

from trtllm_pt.backends import inspect, read_engine
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.serving.error_codes import HTTP_STATUS, ErrorCode, ServedError
from trtllm_pt.serving.http_thread import BODY_BYTES, REQUEST_ID, listening
from trtllm_pt.serving.json_body import json_object
from trtllm_pt.serving.openai.engine_client import EngineClient, Piece, check_inputs
from trtllm_pt.serving.openai.requests import CompletionRequest, RequestParser
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.models.preprocessing import most_bytes
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page.html"
_HEALTH_SECONDS = 10.0  # the time in which a model must answer the health check


class OpenAIServer:
    """OpenAI's endpoints for one model of a running Triton.

    engines: the engine directory that Triton serves. name: the model's name for clients. grpc_url: HOST:PORT of
    Triton's gRPC port. Raises UsageError if the engine has no tokenizer.
    """

    def __init__(self, engines: Path, name: str, grpc_url: str) -> None:
        manifest = read_engine(engines)
        folder = engines / "tokenizer"
        tokenizer = load_tokenizer(folder, required=True)
        end_id, further = end_ids(folder)
        self._limits = manifest.limits
        self._parser = RequestParser(
            tokenizer=tokenizer,
            end_id=end_id,
            further_ends=further,
            limits=self._limits,
            most_bytes=most_bytes(tokenizer, self._limits.max_input_len),
            folder=folder,
        )
        shown = ("ranks", "tracks", "sync_points", "tensor_parallel_sync_points", "schedule")
        self._facts = {name: value for name, value in inspect(engines).items() if name in shown}
        self._in_python = manifest.backend.triton_backend == "python"
        self._name, self._url, self._began = name, grpc_url, int(time.time())

    def listening(self, host: str, port: int) -> AbstractContextManager[None]:
        """Serve from a thread of its own until the block ends. Raises UsageError if the port cannot be used."""
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[_errors])
        app.cleanup_ctx.append(self._connection)
        app.router.add_get("/", _page)
        app.router.add_get("/engine", self._engine)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        for kind in ("completions", "chat/completions"):
            app.router.add_post(f"/v1/{kind}", self._complete)
        return listening(app, host, port, "--openai-port", access_log=log)

    async def _connection(self, _: web.Application) -> AsyncIterator[None]:
        self._client = EngineClient(self._url, self._parser.tokenizer)
        yield
        await self._client.close()

    async def _engine(self, _: web.Request) -> web.Response:
        """Answer with the facts about the engine that the page shows."""
        return web.json_response({"model": self._name, **self._facts})

    async def _health(self, _: web.Request) -> web.Response:
        """Report whether the engine works. Triton reports a model as ready even if its process or ranks are dead."""
        try:
            await asyncio.wait_for(self._check(), _HEALTH_SECONDS)
        except (asyncio.TimeoutError, RunError) as error:
            raise ServedError("unavailable", f"{tensors.ENGINE} does not answer: {error}") from None
        return web.json_response({"status": "ok"})

    async def _check(self) -> None:
        if self._in_python:
            await self._client.check_alive()
        else:
            await self._client.check_ready()

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": self._began, "owned_by": "trtllm_pt"}
        return web.json_response({"object": "list", "data": [model]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.removeprefix("/v1/")
        request_id = f"{'chatcmpl' if kind == 'chat/completions' else 'cmpl'}-{uuid.uuid4().hex}"
        try:
            return await self._answer(request, kind, request_id)
        except (RunError, UsageError) as error:
            return _error_response(error, {REQUEST_ID: request_id})

    async def _answer(self, request: web.Request, kind: str, request_id: str) -> web.StreamResponse:
        body = json_object(await request.read())
        model = body.get("model", self._name)
        if model != self._name:
            raise ServedError("not_found", f"model ({model!r}) is not served here; the model is {self._name!r}")
        wanted = await asyncio.to_thread(self._parser.parse, kind, body)  # a long prompt takes seconds
        for choice in wanted.choices:
            self._limits.check_prompt(len(choice.prompt))
            self._limits.check_sampling(choice.sampling)
            if not self._in_python:
                check_inputs(choice.sampling)
        answer = _Answer(kind, request_id, self._name, wanted)
        async with aclosing(self._client.pieces(request_id, wanted)) as pieces:
            return await (_stream(request, answer, pieces) if wanted.stream else _whole(answer, pieces))


async def _page(_: web.Request) -> web.Response:
    return web.Response(text=_PAGE.read_text(), content_type="text/html")


class _Answer:
    """Builds the JSON bodies of the response to one request."""

    def __init__(self, kind: str, request_id: str, model: str, wanted: CompletionRequest) -> None:
        self._chat = kind == "chat/completions"
        self.wanted = wanted
        self.id = request_id
        self._model, self._created = model, int(time.time())
        self.tokens = 0

    def whole(self, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        """Return the body of a response that is not streamed. texts, reasons: one per choice."""
        choices = [
            {"index": i, "finish_reason": reason, "logprobs": None}
            | ({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text})
            for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    def part(self, index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
        """Return one event of a stream. first: whether it is the first event of the choice `index`."""
        role = {"role": "assistant"} if first else {}
        new = {"delta": {**role, "content": text}} if self._chat else {"text": text}
        choice = {"index": index, "finish_reason": reason, "logprobs": None, **new}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_part(self) -> dict[str, Any]:
        """Return the last event of a stream whose client asked for the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self._chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self) -> dict[str, int]:
        prompt = sum({id(c.prompt): len(c.prompt) for c in self.wanted.choices}.values())
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}


async def _whole(answer: _Answer, pieces: AsyncIterator[Piece]) -> web.Response:
    texts = [choice.echo for choice in answer.wanted.choices]
    reasons = [""] * len(texts)
    async for piece in pieces:
        texts[piece.index] += piece.text
        answer.tokens += piece.tokens
        reasons[piece.index] = piece.finish_reason or ""
    return web.json_response(answer.whole(texts, reasons), headers={REQUEST_ID: answer.id})


async def _stream(request: web.Request, answer: _Answer, pieces: AsyncIterator[Piece]) -> web.StreamResponse:
    """Respond with server-sent events. An error before the first event is an HTTP error, a later one is an event."""
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", REQUEST_ID: answer.id}
    response = web.StreamResponse(headers=headers)
    try:
        async for data in _events(answer, pieces):
            if not response.prepared:
                await response.prepare(request)
            await response.write(f"data: {data}\n\n".encode())
    except RunError as error:
        if not response.prepared:
            raise
        code = _code(error)
        body = _body(HTTP_STATUS[code], str(error), code)
        await response.write(f"data: {json.dumps(body)}\n\n".encode())
    return response


async def _events(answer: _Answer, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    started: set[int] = set()
    async for piece in pieces:
        first = piece.index not in started
        started.add(piece.index)
        answer.tokens += piece.tokens
        text = (answer.wanted.choices[piece.index].echo if first else "") + piece.text
        if text or first or piece.finish_reason:
            yield json.dumps(answer.part(piece.index, text, piece.finish_reason, first))
    if answer.wanted.usage:
        yield json.dumps(answer.usage_part())
    yield "[DONE]"


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Respond to every error in the form that OpenAI's clients expect."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except web.HTTPException as error:
        return web.json_response(_body(error.status, error.reason, None), status=error.status)
    except (RunError, UsageError) as error:
        return _error_response(error)
    except ConnectionError:  # the client has disconnected
        raise asyncio.CancelledError from None


def _error_response(error: RunError | UsageError, headers: Mapping[str, str] | None = None) -> web.Response:
    code = _code(error)
    return web.json_response(_body(HTTP_STATUS[code], str(error), code), status=HTTP_STATUS[code], headers=headers)


def _code(error: RunError | UsageError) -> ErrorCode:
    if isinstance(error, ServedError):
        return error.code
    return "invalid" if isinstance(error, UsageError) else "internal"


def _body(status: int, message: str, code: ErrorCode | None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
