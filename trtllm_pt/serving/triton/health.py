"""Asks a server's Python models whether they live: Triton 2.51 calls a model ready even when its process is dead."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SECONDS = 10.0  # in which a model must answer


@dataclass(frozen=True, slots=True)
class _Question:
    """A request that costs a model nothing."""

    model: str
    verb: str
    body: Mapping[str, Any]
    refusals: tuple[str, ...] = ()  # that show it alive


_ENGINE = _Question(  # to end a request that nobody made
    "tensorrt_llm",
    "generate_stream",
    {"id": "watchdog", "stop": True, "input_ids": [0], "input_lengths": 1, "request_output_len": 1},
)
_TEXTS = (
    _Question(  # the answer is that of preprocessing, which it asks
        "tensorrt_llm_bls",
        "generate",
        {"text_input": "", "max_tokens": 1},
        ("text_input is empty", "the queue is full"),
    ),
    _Question(
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


def fault(url: str, *, embedded: bool) -> str | None:
    """What is wrong with one of the models at Triton's `url`; None: nothing.

    embedded: whether `tensorrt_llm` is a Python model, too. Of a TensorRT engine all servers end with one rank's.
    """
    questions = (_ENGINE, *_TEXTS) if embedded else _TEXTS
    return next((said for question in questions if (said := _complaint(url, question)) is not None), None)


def _complaint(url: str, question: _Question) -> str | None:
    request = urllib.request.Request(
        f"{url}/v2/models/{question.model}/{question.verb}", json.dumps(question.body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            said = answer.read().decode()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
    except (urllib.error.URLError, OSError) as error:
        return f"{question.model} does not answer: {error}"
    found = re.search(r'"error":"(.*)"}', said)
    return None if found is None or found[1].startswith(question.refusals) else found[1]
