"""Error codes of served requests, and the HTTP status of each.

Triton 2.51 passes on a model's error as text alone over gRPC streams and `generate`, and to a model that called another
one. So the code is written at the end of the text: `the queue is full: 12 outputs wait or run [queue_full]`. The Python
models inside Triton write it; the HTTP proxy, the OpenAI port and the model `tensorrt_llm_bls` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from trtllm_pt.errors import RunError

ErrorCode = Literal["invalid", "not_found", "queue_full", "timed_out", "unavailable", "internal"]
HTTP_STATUS: Mapping[ErrorCode, int] = {
    "invalid": 400,  # the request is wrong
    "not_found": 404,  # it names a model that is not served
    "queue_full": 503,
    "timed_out": 503,  # the request's own timeout
    "unavailable": 503,  # the engine, or a model before it, is down
    "internal": 500,
}
# Errors that Triton 2.51 itself makes have no code, only these words.
_TRITON_ERRORS: Mapping[str, ErrorCode] = {
    "maximum queue size": "queue_full",
    "not ready": "unavailable",
    "not at ready state": "unavailable",
    "not healthy": "unavailable",
    # Its HTTP server cannot make tensors of a request's JSON; it answers with status 500.
    "failed to parse": "invalid",
    "Unable to parse": "invalid",
    "attempt to": "invalid",
}


class ServedError(RunError):
    """An error that ends one served request. `str` of it is the message without the code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def parse(cls, text: str, default: ErrorCode = "internal") -> ServedError:
        """Read an error text that came through Triton. `default` is the code of a text that shows none."""
        message, code = split_code(text)
        return cls(code or default, message)


def with_code(message: str, code: ErrorCode) -> str:
    """Return the text of an error as it passes through Triton."""
    return f"{message} [{code}]"


def split_code(text: str) -> tuple[str, ErrorCode | None]:
    """Return the message and the code of an error text; the code is None where neither we nor Triton named one."""
    message, _, last = text.rstrip().rpartition(" [")
    for code in HTTP_STATUS:
        if last == f"{code}]":
            return message, code
    return text, next((code for words, code in _TRITON_ERRORS.items() if words in text), None)
