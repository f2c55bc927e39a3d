"""NVIDIA's clients, with less to write: HTTP bodies as dictionaries, gRPC streams as lists of responses."""

from __future__ import annotations

import json
import queue
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.serving.conftest import Served

TYPES = {np.int32: "INT32", np.float32: "FP32", np.bool_: "BOOL", np.uint64: "UINT64", np.object_: "BYTES"}
TYPES |= {np.int64: "INT64", np.float16: "FP16", np.uint8: "UINT8"}
END = -1  # an end id that no token has
ACTIVE = "nv_trt_llm_request_metrics/active"


def post(served: Served, model: str, body: dict[str, Any] | bytes, verb: str = "generate") -> tuple[int, Any]:
    """Status and JSON of one request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{served.http}/v2/models/{model}/{verb}", data)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read().removeprefix(b"data: "))


def events(served: Served, model: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The server-sent events of generate_stream."""
    url = f"http://127.0.0.1:{served.http}/v2/models/{model}/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=120) as answer:
        lines = [line.decode() for line in answer if line.startswith(b"data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def tensor(value: Any, kind: type, *, rows: int = 1) -> np.ndarray:
    """A value as [1, 1], a list as [1, N]; with more rows a list of lists."""
    array = np.array(value, kind)
    return array if rows > 1 else np.atleast_1d(array)[None]


def scalars(**values: Any) -> dict[str, np.ndarray]:
    kinds = {bool: np.bool_, int: np.int32, float: np.float32, bytes: np.object_, str: np.object_}
    return {name: tensor(value, np.uint64 if name == "seed" else kinds[type(value)]) for name, value in values.items()}


def tokens(ids: list[int], max_tokens: int, **values: Any) -> dict[str, np.ndarray]:
    """What tensorrt_llm takes."""
    return {
        "input_ids": tensor(ids, np.int32),
        **scalars(input_lengths=len(ids), request_output_len=max_tokens, **values),
    }


def inputs_of(tensors: dict[str, np.ndarray]) -> list[Any]:
    """The same as NVIDIA's gRPC clients take them."""
    import tritonclient.grpc as grpc

    inputs = [grpc.InferInput(key, list(array.shape), TYPES[array.dtype.type]) for key, array in tensors.items()]
    for one, array in zip(inputs, tensors.values(), strict=True):
        one.set_data_from_numpy(array)
    return inputs


class Stream:
    """One gRPC stream with one request on it."""

    def __init__(
        self, served: Served, model: str, tensors: dict[str, np.ndarray], *, name: str = "", timeout: int | None = None
    ) -> None:
        import tritonclient.grpc as grpc

        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = grpc.InferenceServerClient(f"127.0.0.1:{served.grpc}")
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))
        self._client.async_stream_infer(
            model, inputs_of(tensors), request_id=name, enable_empty_final_response=True, timeout=timeout
        )

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Each response's tensors. Raises the server's error."""
        final = False
        while not final:
            result, error = self._answers.get(timeout=120)
            if error is not None:
                self._client.stop_stream()  # not cancelled: an ensemble would keep it for ever
                raise error
            message = result.get_response()
            final = message.parameters["triton_final_response"].bool_param
            if message.outputs:
                yield {output.name: result.as_numpy(output.name) for output in message.outputs}
        self._client.stop_stream()

    @property
    def unread(self) -> int:
        """Responses that came and that nobody has taken yet."""
        return self._answers.qsize()

    def close(self) -> None:
        """As a client that goes away."""
        self._client.stop_stream(cancel_requests=True)


def ask(served: Served, model: str, tensors: dict[str, np.ndarray], **options: Any) -> list[dict[str, np.ndarray]]:
    return list(Stream(served, model, tensors, **options))


def ids_of(answers: list[dict[str, np.ndarray]]) -> list[int]:
    return [token for answer in answers for token in answer["output_ids"][0, 0].tolist()]


def text_of(answers: list[dict[str, np.ndarray]]) -> str:
    return b"".join(answer["text_output"][0] for answer in answers).decode()


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@contextmanager
def ended_early(served: Served, tokens: int) -> Iterator[None]:
    """The requests of the block are given up in it: their slots and pages are free before they have their tokens."""
    made = "nv_llm_output_token_len_sum"
    before = figures(served)[made]
    yield
    until(lambda: not figures(served)[ACTIVE] and not figures(served)["nv_trt_llm_kv_cache_block_metrics/used"])
    assert figures(served)[made] - before < tokens, "it ran on to its end"


def figures(served: Served) -> dict[str, float]:
    """The engine's on the metrics page: `family/kind` -> value; of histograms sum and count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{served.metrics}/metrics", timeout=10) as answer:
        lines = re.findall(
            r"^((?:nv_(?:trt_)?llm_|trtllm_pt_|vllm:)\w+)\{(.*)\} (.*)$", answer.read().decode(), re.MULTILINE
        )
    kinds = [(family, re.findall(r'(?:_type|_metric)="(\w+)"', labels), value) for family, labels, value in lines]
    return {"/".join([family, *kind]): float(value) for family, kind, value in kinds}
