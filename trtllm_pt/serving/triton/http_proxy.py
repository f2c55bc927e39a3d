"""The HTTP port of `serve`: a reverse proxy that corrects the statuses of Triton's port. It runs in `serve`'s process.

Over `generate`, Triton 2.51 responds with 400 to every error of a model, because it reads the error's code after it has
freed it, and with 200 if a model sends several responses, where only the body has the error. It responds with 500 to
JSON that it cannot parse, truncates integers that are too large, ignores fields for which a model in C++ has no input,
and is busy for seconds with a large body. The proxy passes on everything else unchanged, in both directions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import aiohttp
from aiohttp import web

from trtllm_pt.errors import UsageError
from trtllm_pt.serving.error_codes import HTTP_STATUS, split_code
from trtllm_pt.serving.http_thread import BODY_BYTES, Port, listening, unreadable
from trtllm_pt.serving.json_body import json_object
from trtllm_pt.serving.triton.health import error_text
from trtllm_pt.serving.triton.tensors import MODELS, inputs

_GENERATES = ("generate", "generate_stream")
_RANGES: dict[str, Callable[[int], bool]] = {
    "INT32": lambda value: -(2**31) <= value < 2**31,
    "UINT64": lambda value: 0 <= value < 2**64,
}
# Headers that belong to one connection, and headers that aiohttp handles itself.
_NOT_PASSED_ON = {"connection", "keep-alive", "host", "transfer-encoding", "content-length", "expect", "date", "server"}


class HttpProxy:
    """A reverse proxy before the Triton at `url`. omitted: the inputs that its model `tensorrt_llm` does not have."""

    def __init__(self, url: str, omitted: Collection[str] = ()) -> None:
        self._url, self._omitted = url, omitted

    def listening(self, host: str, port: int) -> AbstractContextManager[Port]:
        """Serve from a thread of its own until the block ends. Raises UsageError if the port cannot be used."""
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[_errors])
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        app.cleanup_ctx.append(self._connection)
        return listening(app, host, port, "--http-port", _error_response)

    async def _connection(self, _: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            # Triton waits for open connections before it exits, so none is kept alive.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept-Encoding"),
        ) as self._session:
            yield

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        verb = request.path.rsplit("/", 1)[-1]
        generates = request.method == "POST" and verb in _GENERATES
        body = await request.read()
        if generates:
            fields = json_object(body)
            _check_fields(request.path.removeprefix("/v2/models/").split("/")[0], fields, self._omitted)
            if verb == "generate":
                _check_single(fields)
        headers = _passed_on(request.headers)
        headers.pop("Content-Encoding", None)  # aiohttp has decoded the body
        async with self._session.request(
            request.method, self._url + request.raw_path, data=body, headers=headers
        ) as answer:
            if generates and (verb == "generate" or answer.status >= 400):
                return await _checked(answer)
            return await _whole(request, answer)


def _check_fields(model: str, body: Mapping[str, Any], omitted: Collection[str]) -> None:
    """Raise UsageError for what Triton would silently ignore or change.

    That is an input that the model does not have with this engine, and an integer that does not fit into its tensor.
    """
    if model not in MODELS:
        return
    offered = inputs(model, omitted)
    for tensor in inputs(model):
        if tensor.name in body and tensor not in offered:
            raise UsageError(f"{tensor.name} is not supported by this engine")
        given = body.get(tensor.name)
        for value in given if isinstance(given, list) else (given,):
            if tensor.type in _RANGES and type(value) is int and not _RANGES[tensor.type](value):
                raise UsageError(f"{tensor.name} ({value}) must fit into {tensor.type}")


def _check_single(body: Mapping[str, Any]) -> None:
    """Raise UsageError for a field with which our models send several responses. `generate` can return only one."""
    for name, most in (("stream", False), ("streaming", False), ("num_return_sequences", 1)):
        given = body.get(name)
        for value in given if isinstance(given, list) else (given,):
            if isinstance(value, int) and value > most:
                raise UsageError(f"{name} ({json.dumps(value)}) needs generate_stream: generate returns one response")


async def _checked(answer: aiohttp.ClientResponse) -> web.Response:
    """Return Triton's answer with the status that its error has, if it is one."""
    body = await answer.read()
    status, error = answer.status, error_text(body)
    if error is not None:
        _, code = split_code(error)
        status = HTTP_STATUS[code] if code else max(status, HTTP_STATUS["invalid"])
    return web.Response(body=body, status=status, headers=_passed_on(answer.headers))


async def _whole(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
    response.content_length = answer.content_length
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except aiohttp.ClientError:  # Triton has exited: the client must see a broken connection
        if request.transport is not None:
            request.transport.abort()
    return response


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _NOT_PASSED_ON}


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Respond to an error of the proxy itself in the form of Triton's errors."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except web.HTTPRequestEntityTooLarge as error:
        status, message = error.status, f"the body must have at most {BODY_BYTES} bytes"
    except UsageError as error:
        status, message = HTTP_STATUS["invalid"], str(error)
    except web.RequestPayloadError as error:
        status, message = HTTP_STATUS["invalid"], unreadable(error)
    except aiohttp.ClientError as error:
        status, message = HTTP_STATUS["unavailable"], f"Triton does not answer: {error}"
    except ConnectionError:  # the client has disconnected
        raise asyncio.CancelledError from None
    return _error_response(status, message)


def _error_response(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
