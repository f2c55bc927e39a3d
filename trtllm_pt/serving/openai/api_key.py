"""The key that clients must send to the OpenAI port, if the server has one."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

from aiohttp import web

from trtllm_pt.errors import UsageError

VARIABLE = "TRTLLM_PT_API_KEY"
_OPEN = ("/", "/health")  # the page, which asks for the key, and what a supervisor probes


def read_api_key(path: Path | None) -> str | None:
    """Return the key in a file or, without a file, in the environment; None if there is neither.

    The variable is removed from the environment, so that no process that we start inherits it. Raises UsageError,
    without the key in it, for a file that cannot be read and for a key that no header can have.
    """
    given, source = os.environ.pop(VARIABLE, None), VARIABLE
    if path is not None:
        try:
            given, source = path.read_text(), "--api-key-file"
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(f"--api-key-file ({path}) cannot be read: {reason}") from None
    if given is None:
        return None
    key = given.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        raise UsageError(f"{source} must hold a key of printable ASCII characters without spaces")
    return key


def require_key(app: web.Application, key: str) -> None:
    """Refuse the requests to an application that do not have the header `Authorization: Bearer KEY`."""
    wanted = _digest(key)

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path not in _OPEN:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            # Digests have one length, so the time of the comparison says nothing about the key's length either.
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), wanted):
                raise web.HTTPUnauthorized(
                    reason="this server needs an API key: send the header 'Authorization: Bearer KEY'"
                )
        answer: web.StreamResponse = await handler(request)
        return answer

    app.middlewares.append(check)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
