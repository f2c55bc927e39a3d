"""Parameters, tensors and errors of our Python models. Triton runs each model in a process of its own.

Triton's module `triton_python_backend_utils` exists only in these processes.
"""

from __future__ import annotations

import functools
import importlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import PARAMETERS
from trtllm_pt.serving.error_codes import ErrorCode, with_code

MAX_BLS_REQUESTS = 256  # the requests that the model tensorrt_llm_bls handles at the same time
# The names of Triton's own codes. Clients see them in gRPC calls without a stream, and over HTTP for `infer`.
_TRITON_CODES: Mapping[ErrorCode, str] = {
    "invalid": "INVALID_ARG",
    "not_found": "NOT_FOUND",
    "queue_full": "UNAVAILABLE",
    "timed_out": "UNAVAILABLE",
    "unavailable": "UNAVAILABLE",
    "internal": "INTERNAL",
}
_PARAMETERS = {field.parameter for field in PARAMETERS if not field.reports}
_REPORTS = {field.parameter for field in PARAMETERS if field.reports}
Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


@functools.cache
def triton() -> Any:
    """Return the module `triton_python_backend_utils`."""
    return importlib.import_module("triton_python_backend_utils")


class Config:
    """The configuration that Triton passes to a model when it loads it."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self.name, self.version = args["model_name"], args["model_version"]
        self.folder = Path(args["model_repository"])  # the folder of this model alone
        self.data = json.loads(args["model_config"])

    def text(self, key: str) -> str | None:
        """Return a parameter, or None if it is missing, empty, or an unfilled `${…}`."""
        value: str = self.data["parameters"].get(key, {}).get("string_value", "")
        return None if not value or value.startswith("${") else value

    def flag(self, key: str, default: bool) -> bool:
        """Return a parameter that is true or false, or `default` if it has no value."""
        value = self.text(key)
        return default if value is None else is_true(value)

    def number(self, key: str, default: int) -> int:
        """Return a parameter that is a whole number, or `default` if it has no value. Raises UsageError for text."""
        value = self.text(key)
        if value is not None and not value.isdigit():
            raise UsageError(f"{self.name}: parameter {key} ({value!r}) must be a whole number")
        return default if value is None else int(value)

    def path(self, key: str) -> Path:
        """Return a parameter that is a path, joined to the model's folder. Raises UsageError if it has no value."""
        value = self.text(key)
        if value is None:
            raise UsageError(f"{self.name}: parameter {key} is missing")
        return self.folder / value


class Sender:
    """Sends the responses to one request: any number of them with `send`, and then one call of `end`.

    Triton 2.51 crashes if it is asked, after the end of a stream, whether the stream was cancelled. So one lock guards
    both calls.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._ended = False

    def send(self, answer: Any) -> None:
        """Send a response that is not the last one."""
        self._sender.send(answer)

    def end(self, answer: Any = None) -> None:
        """End the request, with a last response if `answer` is given. Until then Triton cannot unload the model."""
        pb = triton()
        with self._lock:
            self._ended = True
            try:
                if answer is None:
                    self._sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                else:
                    self._sender.send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as error:  # an error here must not keep the other requests from ending
                pb.Logger.log_error(f"a last response was lost: {error}")
            finally:
                del self._sender  # Triton does not unload a model while a response sender exists

    def is_cancelled(self) -> bool:
        """Return whether the client has closed its stream before the end."""
        with self._lock:
            return not self._ended and bool(self._sender.is_cancelled())


def is_true(value: str) -> bool:
    """Return whether a parameter's text means true, in the forms that TensorRT-LLM's own models accept."""
    return value.lower() in ("true", "t", "yes", "y", "1")


def arrays(request: Any) -> dict[str, Array]:
    """Return the input tensors of a request, by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def parameters(request: Any, *, reports: bool = False) -> dict[str, Any]:
    """Return the sampling fields that a request has as parameters, because there is no tensor for them.

    Triton makes a parameter of every name in a body of `generate` that is no tensor. Raises UsageError for one that is
    no sampling field either. reports: whether the model accepts fields that ask for numbers about the tokens.
    """
    given: dict[str, Any] = json.loads(request.parameters() or "{}")
    given.pop("id", None)  # of the body, which is also the request's id
    for name in given:
        if name not in _PARAMETERS and not (reports and name in _REPORTS):
            raise UsageError(f"{name} is not supported")
    return given


def response(outputs: Arrays) -> Any:
    """Return a response with the given output tensors."""
    pb = triton()
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in outputs.items()])


def error_response(message: str, code: ErrorCode = "invalid") -> Any:
    """Return a response that is an error. It has the code both as Triton's own code and in its text."""
    pb = triton()
    return pb.InferenceResponse(
        error=pb.TritonError(with_code(message, code), getattr(pb.TritonError, _TRITON_CODES[code]))
    )


def text(value: bytes, name: str) -> str:
    """Decode UTF-8. Raises UsageError, with the field's `name`, for anything else."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not valid UTF-8") from None


def strings(values: list[str]) -> Array:
    """Return texts in the form that Triton expects: an object array of bytes."""
    return np.array([value.encode() for value in values], dtype=object)
