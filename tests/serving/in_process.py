"""Our Triton models in this process, and engines that say what a test wants: no tritonserver, no graph, no ranks.

`Triton` stands for tritonserver: it gives the models the module `triton_python_backend_utils`, runs the ensemble, and
is the gRPC server that OpenAI's endpoints ask.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.configs import TINY
from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.registry import backends
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import write_json
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.requests import sequence
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request, Stats, Tokens, TokenScore
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.config_pbtxt import read_config
from trtllm_pt.serving.triton.models import base, bls, engine, postprocessing, preprocessing
from trtllm_pt.serving.triton.repository import write_repository

MODEL = replace(TINY, vocab_size=512)
Arrays = Mapping[str, Any]
Answer = Callable[[Request], Sequence[int]]
FINAL = 1


def engine_folder(
    folder: Path, tokenizer: Tokenizer, end_ids: Sequence[int] = (), *, model: ModelConfig = MODEL, **files: Any
) -> Path:
    """An engine directory without weights. files: JSON files of the tokenizer's folder, by their names' stems."""
    checkpoint = CheckpointManifest(model=model, ranks=1, dtype="float32")
    manifest = backends()["embedded"].manifest(checkpoint, BuildOptions().resolved(model))
    (folder / "tokenizer").mkdir(parents=True)
    write_json(folder / "config.json", manifest.to_json())
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    write_json(folder / "tokenizer" / "generation_config.json", {"eos_token_id": list(end_ids)})
    for stem, content in files.items():
        write_json(folder / "tokenizer" / f"{stem}.json", content)
    return folder


class Scripted:
    """A runtime that answers each request with `answer`, and with end tokens after it; a UsageError refuses it."""

    def __init__(self, answer: Answer, limits: Limits) -> None:
        self.pids = [os.getpid()]
        self._answer, self._limits = answer, limits
        self._messages: list[Tokens] = []

    def submit(self, request: Request) -> None:
        state = sequence.Sequence.start(request, self._limits.length(request), end_id=-1)
        reason = None
        try:
            tokens = iter(self._answer(request))
        except UsageError as error:
            self._messages.append(Tokens(id=request.id, finish_reason="invalid", error=str(error)))
            return
        while reason is None:
            token = next(tokens, state.end_id)
            reason = state.take(token, TokenScore(-float(token)) if request.sampling.log_probs else None)
            if reason is None and (message := state.send()):
                self._messages.append(message)
        self._messages.append(state.end(reason))

    def cancel(self, request_id: int) -> None:
        pass  # every request has finished

    def poll(self, timeout: float) -> list[Tokens]:
        messages, self._messages = self._messages, []
        return messages

    def stats(self) -> Stats:
        counts = dict.fromkeys(Stats.__struct_fields__, 0) | {"kv_pages_total": 1, "sync_points_seen": None}
        return Stats(**counts)

    def close(self) -> None:
        pass


class Triton:
    """The five models of an engine directory."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.models = {
            name: module.TritonPythonModel()
            for name, module in zip(
                ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"),
                (preprocessing, engine, postprocessing, bls),
                strict=True,
            )
        }

    def load(self) -> None:
        from google.protobuf.json_format import MessageToDict

        for name, model in self.models.items():
            config = read_config(self._repository / name / "config.pbtxt")
            model.initialize(
                {
                    "model_name": name,
                    "model_version": "1",
                    "model_repository": str(self._repository / name),
                    "model_config": json.dumps(MessageToDict(config, preserving_proto_field_name=True)),
                }
            )

    def unload(self) -> None:
        for model in self.models.values():
            model.finalize()

    def ask(self, model: str, given: Arrays, **others: Any) -> Iterator[Arrays]:
        """The output tensors of each response. Raises RuntimeError for an error. others: parameters, request_id."""
        for response in self._responses(model, given, **others):
            if response.has_error():
                raise RuntimeError(response.error().message())
            found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if found:
                yield found

    def _responses(self, model: str, given: Arrays, **others: Any) -> Iterator[_Response]:
        if model == "ensemble":
            yield from self._ensemble(given, others)
            return
        request = _Request(given, **others)
        for answer in self.models[model].execute([request]) or ():
            request.answers.put((answer, FINAL))
        flags = 0
        while flags != FINAL:
            answer, flags = request.answers.get(timeout=60)
            if answer is not None:
                yield answer

    def _ensemble(self, given: Arrays, others: Mapping[str, Any]) -> Iterator[_Response]:
        steps = read_config(self._repository / "ensemble" / "config.pbtxt").ensemble_scheduling.step
        yield from self._step(steps, dict(given), others)

    def _step(self, steps: Sequence[Any], known: dict[str, Any], others: Mapping[str, Any]) -> Iterator[_Response]:
        if not steps:
            yield _Response([_Tensor(name, array) for name, array in known.items() if name in _ENSEMBLES])
            return
        first, *rest = steps
        inputs = {name: known[own] for name, own in first.input_map.items() if own in known}
        for response in self._responses(first.model_name, inputs, **others):
            if response.has_error():
                yield response
                return
            found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            if found:
                named = {own: found[name] for name, own in first.output_map.items() if name in found}
                yield from self._step(rest, known | named, others)


_ENSEMBLES = {tensor.name for tensor in tensors.outputs("ensemble")}


class _Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class _Error:
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL = "INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message, self.code = message, code

    def message(self) -> str:
        return self._message


class _Response:
    def __init__(self, output_tensors: Sequence[_Tensor] = (), error: _Error | None = None) -> None:
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> Sequence[_Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return self._error


class _Request:
    """What a model gets; its own sender too, so `answers` has what the model sends."""

    def __init__(
        self, given: Arrays, request_id: str = "", parameters: Mapping[str, Any] | None = None, timeout: int = 0
    ) -> None:
        self.answers: queue.SimpleQueue[tuple[Any, int]] = queue.SimpleQueue()
        self._given, self._id, self._parameters, self._timeout = given, request_id, parameters or {}, timeout

    def inputs(self) -> list[_Tensor]:
        return [_Tensor(name, array) for name, array in self._given.items()]

    def request_id(self) -> str:
        return self._id

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def timeout(self) -> int:
        return self._timeout

    def get_response_sender(self) -> _Request:
        return self

    def send(self, answer: Any = None, flags: int = 0) -> None:
        self.answers.put((answer, flags))

    def is_cancelled(self) -> bool:
        return False


def _python_backend_utils(triton: Triton) -> Any:
    class InferenceRequest:
        def __init__(self, model_name: str, inputs: Sequence[_Tensor], requested_output_names: Any, **others: Any):
            self._model, self._others = model_name, others
            self._given = {tensor.name(): tensor.as_numpy() for tensor in inputs}

        def exec(self, decoupled: bool = False) -> Any:
            responses = triton._responses(self._model, self._given, **self._others)
            return responses if decoupled else next(responses)

    nothing = SimpleNamespace(set=lambda value: None, observe=lambda value: None)

    class MetricFamily:
        GAUGE, HISTOGRAM = 1, 2

        def __init__(self, **_: Any) -> None:
            pass

        def Metric(self, **_: Any) -> Any:
            return nothing

    return SimpleNamespace(
        Tensor=_Tensor,
        InferenceRequest=InferenceRequest,
        InferenceResponse=_Response,
        TritonError=_Error,
        MetricFamily=MetricFamily,
        Logger=SimpleNamespace(log_error=print),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )


class _Input:
    """tritonclient's InferInput."""

    def __init__(self, name: str, shape: Sequence[int], datatype: str) -> None:
        self.name = name

    def set_data_from_numpy(self, array: Any) -> None:
        self.array = array


def _grpc(triton: Triton) -> Any:
    class InferenceServerClient:
        def __init__(self, url: str, **_: Any) -> None:
            pass

        async def close(self) -> None:
            pass

        async def stream_infer(self, requests: AsyncIterator[Any]) -> AsyncIterator[tuple[Any, Any]]:
            async for request in requests:
                given = {one.name: one.array for one in request["inputs"]}
                others = {name: request[name] for name in ("request_id", "parameters")}
                responses = await asyncio.to_thread(list, triton._responses(request["model_name"], given, **others))
                for response in responses:
                    found = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
                    error = response.error()
                    yield (None, error) if error else (SimpleNamespace(as_numpy=found.get), None)

    return SimpleNamespace(InferInput=_Input, InferenceServerClient=InferenceServerClient)


@contextmanager
def triton_of(engines: Path, answer: Answer, root: Path) -> Iterator[Triton]:
    """The models of an engine directory whose engine answers with `answer`; OpenAI's endpoints ask them too."""
    from trtllm_pt.serving.openai import engine_client

    write_repository(engines, root / "repository")
    triton = Triton(root / "repository")
    guard = SimpleNamespace(end=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", _python_backend_utils(triton))
        for module in (preprocessing, engine, postprocessing, bls):
            patch.setattr(module, "ProcessGuard", lambda name: guard)
        for module in (engine, bls):
            patch.setattr(module.logs, "set_up_from_environment", lambda: None)
        patch.setattr(engine, "RemoteRuntime", lambda folder, manifest, **_: Scripted(answer, manifest.limits))
        patch.setattr(engine_client, "grpc", _grpc(triton))
        base.triton.cache_clear()
        triton.load()
        try:
            yield triton
        finally:
            triton.unload()
            base.triton.cache_clear()


def text_inputs(**values: Any) -> dict[str, Any]:
    """The inputs of a text model: scalars and lists of strings, for one row."""
    kinds = {bool: np.bool_, int: np.int32, float: np.float32, str: np.object_}

    def array(value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        coded = [one.encode() if isinstance(one, str) else one for one in items]
        return np.array([coded], kinds[type(items[0])])

    return {name: array(value) for name, value in values.items()}
