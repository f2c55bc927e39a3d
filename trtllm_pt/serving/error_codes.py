"""Error codes of served requests, and the HTTP status of each.

Over gRPC streams, over `generate`, and from one model to another, Triton 2.51 passes on only the text of a model's
error. So the code is written at the end of the text: `the queue is full: 12 outputs are waiting or running
[queue_full]`. The Python models inside Triton write it; the HTTP proxy, the OpenAI port and the model
`tensorrt_llm_bls` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from trtllm_pt.errors import RunError

ErrorCode = Literal["invalid", "not_found", "queue_full", "timed_out", "unavailable", "internal"]
HTTP_STATUS: Mapping[ErrorCode, int] = {
    "invalid": 400,  # the request has an error
    "not_found": 404,  # the request names a model that is not served
    "queue_full": 503,
    "timed_out": 503,  # the timeout that the client set for the request
    "unavailable": 503,  # the engine, or a model before it, is down
    "internal": 500,
}
# Errors that Triton 2.51 itself raises have no code. They are recognised by these phrases.
_TRITON_ERRORS: Mapping[str, ErrorCode] = {
    "maximum queue size": "queue_full",
    "not ready": "unavailable",
    "not at ready state": "unavailable",
    "has no available versions": "unavailable",  # the server is ending and has unloaded the model
    "not healthy": "unavailable",
    # Triton's HTTP server could not convert a request's JSON into tensors. It answers with status 500.
    "failed to parse": "invalid",
    "Unable to parse": "invalid",
    "attempt to": "invalid",
    # The model has sent several responses to a request of `generate`.
    "expects model to produce exactly 1 response": "invalid",
}


class ServedError(RunError):
    """The error of one served request. Its `str` is the message without the code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def parse(cls, text: str, default: ErrorCode = "internal") -> ServedError:
        """Parse an error text that came through Triton. `default` is the code for a text without one."""
        message, code = split_code(text)
        return cls(code or default, message)


def with_code(message: str, code: ErrorCode) -> str:
    """Return a message with its code at the end, the form in which an error passes through Triton."""
    return f"{message} [{code}]"


def split_code(text: str) -> tuple[str, ErrorCode | None]:
    """Return the message and the code of an error text. The code is None if the text is neither ours nor Triton's."""
    message, _, last = text.rstrip().rpartition(" [")
    for code in HTTP_STATUS:
        if last == f"{code}]":
            return message, code
    return text, next((code for words, code in _TRITON_ERRORS.items() if words in text), None)
