"""Checks, with a request to each of Triton's Python models, whether they work. `serve` runs these checks.

The readiness that Triton 2.51 reports stays true when a model's process is dead.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_pt.serving.direct_http import open_directly
from trtllm_pt.serving.error_codes import ErrorCode, ServedError
from trtllm_pt.serving.triton import tensors

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Probe:
    """A request that costs a model almost nothing."""

    model: str
    verb: str
    body: Mapping[str, Any]
    working: tuple[ErrorCode, ...] = ()  # codes of errors that show that the model works


_ENGINE = _Probe(  # a `stop` for an id that no request has
    tensors.ENGINE,
    "generate_stream",
    {"id": "health", "stop": True, "input_ids": [0], "input_lengths": 1, "request_output_len": 1},
)
_TEXT_MODELS = (
    _Probe(  # the model calls preprocessing, which refuses the empty prompt
        tensors.BLS,
        "generate",
        {"text_input": "", "max_tokens": 1},
        ("invalid", "queue_full"),
    ),
    _Probe(
        "postprocessing",
        "infer",
        {
            "inputs": [
                {"name": "TOKENS_BATCH", "datatype": "INT32", "shape": [1, 1, 1], "data": [0]},
                {"name": "SEQUENCE_LENGTH", "datatype": "INT32", "shape": [1, 1], "data": [1]},
            ]
        },
    ),
)


def fault(url: str, *, engine_in_python: bool) -> str | None:
    """Return a message about the first model of the Triton at `url` that does not work, or None if all models work.

    engine_in_python: whether our Python model runs the engine. If not, the engine needs no check, because all servers
    exit when the server of one rank exits.
    """
    probes = (_ENGINE, *_TEXT_MODELS) if engine_in_python else _TEXT_MODELS
    return next((found for probe in probes if (found := _fault(url, probe)) is not None), None)


def _fault(url: str, probe: _Probe) -> str | None:
    request = urllib.request.Request(f"{url}/v2/models/{probe.model}/{probe.verb}", json.dumps(probe.body).encode())
    try:
        with open_directly(request, _TIMEOUT_SECONDS) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except (urllib.error.URLError, OSError) as error:
        return f"{probe.model} does not answer: {error}"
    text = error_text(body)
    if text is None:
        return None
    failure = ServedError.parse(text)
    return None if failure.code in probe.working else str(failure)


def error_text(body: bytes) -> str | None:
    """Return the error in a response body of Triton, which is JSON or a server-sent event, or None if it has none.

    A response without an error has `model_name`, and perhaps an output tensor that is called `error`.
    """
    try:
        answer = json.loads(body.strip().removeprefix(b"data: ") or b"{}")
        return str(answer["error"]) if "error" in answer and "model_name" not in answer else None
    except (ValueError, TypeError):
        return None
