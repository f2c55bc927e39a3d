"""The OpenAI port: OpenAI's endpoints and a web page for prompts. It runs in the process of `serve`.

It sends its requests to the model `tensorrt_llm` itself, so that it can stop the request of a client that disconnects.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any

from aiohttp import web

from trtllm_pt.backends import inspect, read_engine
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.serving.error_codes import HTTP_STATUS, ErrorCode, ServedError
from trtllm_pt.serving.http_thread import BODY_BYTES, REQUEST_ID, Port, listening, unreadable
from trtllm_pt.serving.json_body import json_object
from trtllm_pt.serving.openai.api_key import require_key
from trtllm_pt.serving.openai.chat_template import ChatTemplate
from trtllm_pt.serving.openai.cors import allow_origins
from trtllm_pt.serving.openai.engine_client import EngineClient, Piece
from trtllm_pt.serving.openai.requests import RequestParser
from trtllm_pt.serving.openai.responses import Answer
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.models.preprocessing import most_bytes
from trtllm_pt.text.stream import Continuation
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

log = logging.getLogger(__name__)
_PAGE = Path(__file__).parent / "page.html"
_HEALTH_SECONDS = 10.0  # the time in which a model must answer the health check


class OpenAIServer:
    """OpenAI's endpoints for one model of a running Triton.

    engines: the engine directory that Triton serves. name: the model's name for clients. grpc_url: HOST:PORT of
    Triton's gRPC port. allowed_origins: those whose web pages may use the endpoints, `*` for all. api_key: what clients
    must send; None: nothing. Raises UsageError if the engine has no tokenizer.
    """

    def __init__(
        self,
        engines: Path,
        name: str,
        grpc_url: str,
        allowed_origins: Collection[str] = (),
        api_key: str | None = None,
    ) -> None:
        manifest = read_engine(engines)
        folder = engines / "tokenizer"
        tokenizer = load_tokenizer(folder, required=True)
        end_id, further = end_ids(folder)
        self._limits = manifest.triton_limits
        self._words = Continuation(tokenizer, skip_special_tokens=False)
        self._parser = RequestParser(
            tokenizer=tokenizer,
            end_id=end_id,
            further_ends=further,
            limits=self._limits,
            most_bytes=most_bytes(tokenizer, self._limits.max_input_len),
            template=ChatTemplate(folder),
        )
        shown = ("ranks", "tracks", "sync_points", "tensor_parallel_sync_points", "schedule")
        self._facts = {name: value for name, value in inspect(engines).items() if name in shown}
        self._in_python = manifest.backend.triton_backend == "python"
        self._name, self._url, self._began = name, grpc_url, int(time.time())
        self._allowed_origins, self._api_key = allowed_origins, api_key

    def listening(self, host: str, port: int) -> AbstractContextManager[Port]:
        """Serve from a thread of its own until the block ends. Raises UsageError if the port cannot be used."""
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[_errors])
        if self._api_key is not None:
            require_key(app, self._api_key)
        if self._allowed_origins:
            allow_origins(app, self._allowed_origins)
        app.cleanup_ctx.append(self._connection)
        app.router.add_get("/", _page)
        app.router.add_get("/engine", self._engine)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        for kind in ("completions", "chat/completions"):
            app.router.add_post(f"/v1/{kind}", self._complete)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        return listening(app, host, port, "--openai-port", _plain_error, access_log=log)

    async def _connection(self, _: web.Application) -> AsyncIterator[None]:
        self._client = EngineClient(self._url, self._parser.tokenizer, self._limits.vocab_size)
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
        return web.json_response({"object": "list", "data": [self._described()]})

    async def _model(self, request: web.Request) -> web.Response:
        self._check_name(request.match_info["name"])
        return web.json_response(self._described())

    def _described(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._began, "owned_by": "trtllm_pt"}

    def _check_name(self, model: Any) -> None:
        """Raises ServedError for the name of another model. A request need not name one."""
        if model not in (None, self._name):
            raise ServedError("not_found", f"model ({model!r}) is not served here; the model is {self._name!r}")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = json_object(await request.read())
        self._check_name(body.get("model"))
        tokens, strings = await asyncio.to_thread(self._parser.tokenize, body)
        shown = {"count": len(tokens), "max_model_len": self._limits.max_seq_len, "tokens": tokens}
        return web.json_response({**shown, "token_strs": strings})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = json_object(await request.read())
        self._check_name(body.get("model"))
        return web.json_response({"prompt": await asyncio.to_thread(self._parser.detokenize, body)})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        kind = request.path.removeprefix("/v1/")
        request_id = f"{'chatcmpl' if kind == 'chat/completions' else 'cmpl'}-{uuid.uuid4().hex}"
        try:
            return await self._answer(request, kind, request_id)
        except (RunError, UsageError) as error:
            return _error_response(error, {REQUEST_ID: request_id})

    async def _answer(self, request: web.Request, kind: str, request_id: str) -> web.StreamResponse:
        body = json_object(await request.read())
        self._check_name(body.get("model"))
        wanted = await asyncio.to_thread(self._parser.parse, kind, body)  # a long prompt takes seconds
        for choice in wanted.choices:
            self._limits.check_prompt(len(choice.prompt))
            self._limits.check_sampling(choice.sampling)
        answer = Answer(kind, request_id, self._name, wanted, self._words)
        async with aclosing(self._client.pieces(request_id, wanted)) as pieces:
            return await (_stream(request, answer, pieces) if wanted.stream else _whole(answer, pieces))


async def _page(_: web.Request) -> web.Response:
    return web.Response(text=_PAGE.read_text(), content_type="text/html")


async def _whole(answer: Answer, pieces: AsyncIterator[Piece]) -> web.Response:
    found: list[list[Piece]] = [[] for _ in answer.wanted.choices]
    async for piece in pieces:
        found[piece.index].append(piece)
    return web.json_response(answer.whole(found), headers={REQUEST_ID: answer.id})


async def _stream(request: web.Request, answer: Answer, pieces: AsyncIterator[Piece]) -> web.StreamResponse:
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


async def _events(answer: Answer, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    started: set[int] = set()
    async for piece in pieces:
        first = piece.index not in started
        started.add(piece.index)
        part = answer.part(piece, first)  # always, because it counts the tokens
        if piece.text or first or piece.finish_reason or piece.scores:
            yield json.dumps(part)
    if answer.wanted.usage:
        yield json.dumps(answer.usage_part())
    yield "[DONE]"


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Respond to every error in the form that OpenAI's clients expect."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except web.HTTPUnauthorized as error:
        body = _body(error.status, error.reason, "invalid_api_key")
        return web.json_response(body, status=error.status, headers={"WWW-Authenticate": "Bearer"})
    except web.HTTPException as error:
        return _plain_error(error.status, error.reason)
    except web.RequestPayloadError as error:
        return _plain_error(400, unreadable(error))
    except (RunError, UsageError) as error:
        return _error_response(error)
    except ConnectionError:  # the client has disconnected
        raise asyncio.CancelledError from None


def _plain_error(status: int, message: str) -> web.Response:
    code = "unavailable" if status == HTTP_STATUS["unavailable"] else None
    return web.json_response(_body(status, message, code), status=status)


def _error_response(error: RunError | UsageError, headers: Mapping[str, str] | None = None) -> web.Response:
    code = _code(error)
    return web.json_response(_body(HTTP_STATUS[code], str(error), code), status=HTTP_STATUS[code], headers=headers)


def _code(error: RunError | UsageError) -> ErrorCode:
    if isinstance(error, ServedError):
        return error.code
    return "invalid" if isinstance(error, UsageError) else "internal"


def _body(status: int, message: str, code: str | None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
