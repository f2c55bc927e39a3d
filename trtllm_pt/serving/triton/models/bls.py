"""The model `tensorrt_llm_bls`: it turns text into text, in whole characters, with any engine.

Triton runs it in a process of its own. It calls `preprocessing` and `tensorrt_llm`, and decodes the tokens itself with
the settings of `postprocessing`. A stop word ends a text no matter how tokens split the word. If a client closes its
stream, the model stops the engine's request.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trtllm_pt import logs
from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import UsageError
from trtllm_pt.serving.error_codes import ServedError
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.config_pbtxt import parameter, read_config
from trtllm_pt.serving.triton.models.base import (
    MAX_BLS_REQUESTS,
    Array,
    Arrays,
    Config,
    Sender,
    arrays,
    error_response,
    is_true,
    parameters,
    response,
    strings,
    text,
    triton,
)
from trtllm_pt.serving.triton.models.request import for_cpp_backend
from trtllm_pt.serving.triton.process_guard import ProcessGuard
from trtllm_pt.text.stream import TextStream
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.1  # between two checks for closed streams
_FROM_ENGINE = ["output_ids", "sequence_length", *tensors.RESULTS]


class TritonPythonModel:
    """The model, with the methods that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        logs.set_up_from_environment()
        config = Config(args)
        self._engine = config.text("tensorrt_llm_model_name") or tensors.ENGINE
        # If a Triton backend in C++ runs the engine, which accepts what it cannot do, this model checks requests.
        self._unchecked = _manifest_of_cpp_backend(config.folder.parent / self._engine)
        folder, self._skip = _postprocessing(config)  # TensorRT-LLM's config for this model has no tokenizer
        self._tokenizer = load_tokenizer(folder, required=True)
        self._further_ends = set(end_ids(folder)[1])
        self._pool = ThreadPoolExecutor(MAX_BLS_REQUESTS)  # each request has a thread, which sleeps most of the time
        self._free = threading.Semaphore(MAX_BLS_REQUESTS)
        self._senders: dict[str, Sender] = {}  # by the engine's id of each request that it works on
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._guard = ProcessGuard(config.name)

    def finalize(self) -> None:
        self._pool.shutdown()
        self._closing.set()
        self._watcher.join()
        self._guard.end()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = Sender(request)
            if self._free.acquire(blocking=False):
                self._pool.submit(self._answer, request, sender)
            else:
                sender.end(error_response(f"the queue is full: {MAX_BLS_REQUESTS} requests are running", "queue_full"))

    def _answer(self, request: Any, sender: Sender) -> None:
        try:
            self._respond(request, sender)
        finally:
            self._free.release()

    def _respond(self, request: Any, sender: Sender) -> None:
        last = None
        try:
            for part in self._responses(request, sender):
                sender.send(response(part))
        except UsageError as error:
            last = error_response(str(error), "invalid")
        except ServedError as error:
            last = error_response(str(error), error.code)
        except Exception as error:  # the thread pool would drop it silently
            log.exception("a request failed unexpectedly")
            last = error_response(f"{type(error).__name__}: {error}", "internal")
        sender.end(last)

    def _responses(self, request: Any, sender: Sender) -> Iterator[dict[str, Array]]:
        given, passed_on = arrays(request), parameters(request)
        for name in given:
            if name not in tensors.TO_PREPROCESSING and name not in tensors.PASSED_ON:
                raise UsageError(f"{name} is not supported")
        query = {key: given[name] for name, key in tensors.TO_PREPROCESSING.items() if name in given}
        [ids] = self._ask("preprocessing", query, list(tensors.FROM_PREPROCESSING), passed_on=passed_on)
        wanted = self._to_engine(given, ids)
        texts = _OutputTexts(self._tokenizer, self._skip, self._further_ends, given, ids)
        engine_id, timeout, over = _engine_id(request.request_id()), request.timeout(), False
        self._senders[engine_id] = sender
        try:
            for part in self._ask(self._engine, wanted, _FROM_ENGINE, engine_id, timeout, passed_on):
                yield from texts.take(part)
                if texts.all_stopped:
                    self._stop(engine_id)
            over = True
            yield from texts.rest()
        finally:
            del self._senders[engine_id]
            if not over:
                self._stop(engine_id)

    def _to_engine(self, given: Arrays, ids: Arrays) -> dict[str, Array]:
        """Return the inputs of `tensorrt_llm`. Raises UsageError for a value that it would not refuse itself."""
        found = _to_engine(given, ids)
        if (manifest := self._unchecked) is None:
            return found
        backend = manifest.backend
        return for_cpp_backend(found, manifest.triton_limits, omitted=backend.triton_omits, engine=backend.title)

    def _ask(
        self,
        model: str,
        given: Arrays,
        names: list[str],
        request_id: str = "",
        timeout: int = 0,
        passed_on: Mapping[str, Any] | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Call another model and yield its responses. Raises ServedError for a response that is an error."""
        pb = triton()
        request = pb.InferenceRequest(
            model_name=model,
            inputs=[pb.Tensor(name, np.ascontiguousarray(array)) for name, array in given.items()],
            requested_output_names=names,
            request_id=request_id,
            timeout=timeout,
            parameters=dict(passed_on or {}),
        )
        for answer in request.exec(decoupled=True) if model == self._engine else [request.exec()]:
            if answer.has_error():
                raise ServedError.parse(answer.error().message())
            found = {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
            if found:  # otherwise it is the end of the stream
                yield found

    def _watch(self) -> None:
        while not self._closing.wait(_CHECK_SECONDS):
            for engine_id, sender in self._senders.copy().items():
                if sender.is_cancelled():
                    self._stop(engine_id)

    def _stop(self, engine_id: str) -> None:
        """Ask the engine to stop a request. Nothing happens if the request has finished or the engine is down."""
        one = np.ones((1, 1), np.int32)
        stop = {"stop": one.astype(bool), "input_ids": one, "input_lengths": one, "request_output_len": one}
        with contextlib.suppress(ServedError):
            for _ in self._ask(self._engine, stop, ["output_ids"], engine_id):
                pass


def _engine_id(request_id: str) -> str:
    """Return a unique id for a request to the engine. It must be unique, as `stop` ends all requests with its id."""
    unique = uuid.uuid4().hex
    return f"{request_id}-{unique}" if request_id else unique


def _to_engine(given: Arrays, ids: Arrays) -> dict[str, Array]:
    """Return the inputs of `tensorrt_llm`. Its output excludes the prompt; this model adds the prompt if requested."""
    found = {name: ids[key] for key, name in tensors.FROM_PREPROCESSING.items() if key in ids}
    found |= {name: _column(given[own]) for own, name in tensors.PASSED_ON.items() if own in given}
    found["exclude_input_in_output"] = np.ones((len(ids["INPUT_ID"]), 1), bool)
    return found


def _column(array: Array) -> Array:
    """Return scalars of shape [batch] in the shape [batch, 1], in which a caller must send them."""
    return array.reshape(-1, 1) if array.ndim == 1 else array


class _OutputTexts:
    """Decodes the outputs of one request. An output is identified by its row in the batch and its sequence number."""

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool, further_ends: Collection[int], given: Arrays, ids: Arrays
    ) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ends = () if "end_id" in given else further_ends
        rows = len(ids["INPUT_ID"])
        self._streaming = _flags(given, "stream", rows, False)
        self._exclude = _flags(given, "exclude_input_in_output", rows, True)
        self._min_tokens = given["min_tokens"].ravel().tolist() if "min_tokens" in given else [0] * rows
        self._prompts = [
            row[:n].tolist() for row, n in zip(ids["INPUT_ID"], ids["REQUEST_INPUT_LEN"].ravel(), strict=True)
        ]
        self._outputs = rows * int(given["num_return_sequences"].ravel()[0] if "num_return_sequences" in given else 1)
        self._stops = [
            [text(word, "stop_words") for word in row] for row in given.get("stop_words", np.empty((rows, 0)))
        ]
        self._streams: dict[tuple[int, int], TextStream] = {}

    @property
    def all_stopped(self) -> bool:
        """Whether every output has reached a stop word."""
        return len(self._streams) == self._outputs and all(stream.stopped for stream in self._streams.values())

    def take(self, part: dict[str, Array]) -> Iterator[dict[str, Array]]:
        """Convert a response of the engine. Yields one response, or none if its output has reached a stop word."""
        ids, length = part.pop("output_ids"), part.pop("sequence_length")
        row, sequence = (
            int(part[name].ravel()[0]) if name in part else 0 for name in ("batch_index", "sequence_index")
        )
        stream = self._stream(row, sequence)
        if stream.stopped:
            return
        came = ids[0, 0, : int(length.ravel()[0])].tolist()
        if "output_log_probs" in part:  # TensorRT-LLM's backend repeats those of the tokens before
            part["output_log_probs"] = part["output_log_probs"][..., part["output_log_probs"].shape[-1] - len(came) :]
        before = stream.tokens
        # Of several end tokens, TensorRT-LLM knows one, and takes the others for stop words, which it returns.
        new = stream.push(itertools.takewhile(lambda token: token not in self._ends, came))
        part = _without_last(part, len(came) - (stream.tokens - before))
        if not self._streaming[row]:
            new += stream.flush()
            if not self._exclude[row]:
                new = self._tokenizer.decode(self._prompts[row], skip_special_tokens=self._skip) + new
        yield {"text_output": strings([new]), **part}

    def rest(self) -> Iterator[dict[str, Array]]:
        """Yield the texts that were held back, after the engine has finished."""
        for (row, sequence), stream in self._streams.items():
            if stream.stopped:
                continue
            if rest := stream.flush():
                place = {"batch_index": row, "sequence_index": sequence}
                indices = {name: np.array([[index]], np.int32) for name, index in place.items()}
                yield {"text_output": strings([rest]), **indices}

    def _stream(self, row: int, sequence: int) -> TextStream:
        if (row, sequence) not in self._streams:
            stops = list(filter(None, self._stops[row]))
            self._streams[row, sequence] = TextStream(
                self._tokenizer,
                stops,
                prompt=self._prompts[row],
                min_tokens=self._min_tokens[row],
                skip_special_tokens=self._skip,
                include_stop=True,
            )
        return self._streams[row, sequence]


def _without_last(part: dict[str, Array], tokens: int) -> dict[str, Array]:
    """Return a response without the count, the log-probs and the logits of its last `tokens` tokens."""
    if not tokens:
        return part
    changed = {}
    if "num_output_tokens" in part:
        changed["num_output_tokens"] = part["num_output_tokens"] - tokens
    if "generation_logits" in part:
        changed["generation_logits"] = part["generation_logits"][..., :-tokens, :]
    if "output_log_probs" in part:
        each = part["output_log_probs"]
        changed["output_log_probs"] = each[..., :-tokens]
        changed["cum_log_probs"] = part["cum_log_probs"] - each[..., -tokens:].sum(-1)
    return {**part, **changed}


def _flags(given: Arrays, name: str, rows: int, default: bool) -> list[bool]:
    return [bool(value) for value in given[name].ravel()] if name in given else [default] * rows


def _manifest_of_cpp_backend(folder: Path) -> EngineManifest | None:
    """Return the manifest of the engine of the model in `folder`, or None if our own Python model runs it."""
    config = read_config(folder / "config.pbtxt")
    if config.backend == "python":
        return None
    return read_engine(folder / (parameter(config, "gpt_model_path") or ""))


def _postprocessing(config: Config) -> tuple[Path, bool]:
    """Return the tokenizer folder of `postprocessing`, and whether it omits special tokens from texts."""
    folder = config.folder.parent / "postprocessing"
    written = read_config(folder / "config.pbtxt")
    tokenizer, skip = (parameter(written, key) for key in ("tokenizer_dir", "skip_special_tokens"))
    if not tokenizer:
        raise UsageError("postprocessing: parameter tokenizer_dir is missing")
    return folder / tokenizer, is_true(skip or "true")
