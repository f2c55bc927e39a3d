"""A client of Triton's HTTP port for one streamed prompt. It uses only the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.serving.direct_http import open_url
from trtllm_pt.serving.error_codes import ServedError, split_code
from trtllm_pt.serving.triton import tensors

DEFAULT_URL = "http://127.0.0.1:8000"
_MODEL = tensors.BLS


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of a stream, and how many tokens it took. The text has whole characters only, so it can be empty."""

    text: str
    tokens: int


def stream(url: str, fields: Mapping[str, Any]) -> Iterator[Piece]:
    """Send one request and yield its text as it arrives.

    url: the address of Triton's HTTP port. fields: the inputs of the model `tensorrt_llm_bls`, by name. Raises
    UsageError if no server answers or the server refuses the request, and RunError if the request fails later.
    """
    body = json.dumps({**fields, "stream": True, "return_num_output_tokens": True}).encode()
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/v2/models/{_MODEL}/generate_stream", body)
        with open_url(request) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield _piece(json.loads(line.removeprefix(b"data: ")))
    except urllib.error.HTTPError as error:
        raise UsageError(f"{url}: {_reason(error)}") from None
    except urllib.error.URLError as error:
        raise UsageError(f"no server answers at {url} ({error.reason}): start one with `trtllm-pt serve`") from None
    except ValueError as error:
        raise UsageError(f"{url!r} is not the address of a server: {error}") from None
    except OSError as error:
        raise RunError(f"{url}: the server closed the connection: {error}") from None


def _piece(event: Mapping[str, Any]) -> Piece:
    if "error" in event:
        raise ServedError.parse(str(event["error"]))
    return Piece(str(event["text_output"]), event.get("num_output_tokens", 0))


def _reason(error: urllib.error.HTTPError) -> str:
    """Return Triton's error message, from a plain body or an event."""
    said = error.read().decode(errors="replace").strip().removeprefix("data: ")
    try:
        return split_code(str(json.loads(said)["error"]))[0]
    except (ValueError, LookupError, TypeError):
        return f"{error.code} {error.reason}: is that a Triton server with the model {_MODEL}?"
