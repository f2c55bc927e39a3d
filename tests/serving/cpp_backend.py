"""A stand-in for NVIDIA's Triton backend `tensorrtllm` 1.2.1, over that for its executor.

It reads requests as the C++ does (triton_backend/inflight_batcher_llm/src/utils.cc): sampling fields go to the executor
by position, of which they are one short; nothing is checked; an input that is not read is ignored. `install` makes it a
backend of the Triton that tests start, which loads this module in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.backends.tensorrt_llm.executor.bindings import CATALOGUE
from tests.backends.tensorrt_llm.executor.engine import MODULE

ROOT = Path(__file__).parents[2]
CODE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.serving.cpp_backend import TritonPythonModel
"""
# The parameters of the executor's SamplingConfig in their order, and the inputs that the backend passes in this order.
# Since a version of the former has prompt_ignore_length in the middle, those that follow arrive one place too early.
PARAMETERS = [(name, kind) for name, _, _, kind in CATALOGUE["classes"]["SamplingConfig"]["init"][0]]
PASSED = """
    beam_width runtime_top_k runtime_top_p runtime_top_p_min runtime_top_p_reset_ids runtime_top_p_decay seed
    temperature min_tokens beam_search_diversity_rate repetition_penalty presence_penalty frequency_penalty len_penalty
    early_stopping noRepeatNgramSize num_return_sequences
""".split()


def install(backends: Path) -> None:
    """Add it to a folder of Triton's backends, which has the Python backend."""
    library = backends / "python" / "libtriton_python.so"
    file = library.resolve()
    library.unlink()
    shutil.copy(file, library)  # Triton refuses a backend in Python if this is a link
    (backends / "tensorrtllm").mkdir()
    (backends / "tensorrtllm" / "model.py").write_text(CODE)


@dataclass
class Running:
    """One row of a request."""

    sender: Any
    name: str
    streaming: bool
    left: list[int]  # the executor's ids of all unfinished rows of the request
    row: int
    rows: int
    tokens: list[int] = field(default_factory=list)  # that were not sent


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._pb = __import__("triton_python_backend_utils")
        given = json.loads(args["model_config"])["parameters"]
        values = {key: value["string_value"] for key, value in given.items()}
        reuse, normalize = (values[key] == "true" for key in ("enable_kv_cache_reuse", "normalize_log_probs"))
        config = MODULE.ExecutorConfig(
            kv_cache_config=MODULE.KvCacheConfig(enable_block_reuse=reuse), normalize_log_probs=normalize
        )
        self._executor = MODULE.Executor(values["gpt_model_path"], MODULE.ModelType.DECODER_ONLY, config)
        self._running: dict[int, Running] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def finalize(self) -> None:
        self._closing = True
        self._thread.join()
        self._executor.shutdown()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            given, sender = {t.name(): t.as_numpy() for t in request.inputs()}, request.get_response_sender()
            try:
                self._accept(given, request.request_id(), sender)
            except Exception as error:
                self._end(sender, self._pb.InferenceResponse(error=self._pb.TritonError(str(error))))

    def _accept(self, given: dict[str, Any], name: str, sender: Any) -> None:
        with self._lock:
            if "stop" in given and given["stop"].any():
                for number in [number for number, one in self._running.items() if one.name == name]:
                    self._executor.cancel_request(number)
                self._end(sender)
                return
            left: list[int] = []
            rows = len(given["input_ids"])
            for row in range(rows):
                own = {key: array[row] for key, array in given.items()}
                streaming = bool(own["streaming"].any()) if "streaming" in own else False
                left.append(self._executor.enqueue_request(executor_request(own)))
                self._running[left[-1]] = Running(sender, name, streaming, left, row, rows)

    def _work(self) -> None:
        while not self._closing:
            for response in self._executor.await_responses(timedelta(milliseconds=20)):
                with self._lock:
                    self._take(response)

    def _take(self, response: Any) -> None:
        one = self._running[response.request_id]
        if response.has_error():
            del self._running[response.request_id]
            self._end(one.sender, self._pb.InferenceResponse(error=self._pb.TritonError(response.error_msg)))
            return
        result = response.result
        one.tokens += result.output_token_ids[0]
        if not (result.is_final or one.streaming):
            return
        tensors = {
            "output_ids": np.array([[one.tokens]], np.int32),
            "sequence_length": np.array([[len(one.tokens)]], np.int32),
        }
        if result.log_probs is not None:
            tensors["output_log_probs"] = np.array([result.log_probs], np.float32)
            tensors["cum_log_probs"] = np.array([[sum(result.log_probs[0])]], np.float32)
        if one.rows > 1:
            tensors["batch_index"] = np.array([[one.row]], np.int32)
        one.tokens = []
        answer = self._pb.InferenceResponse([self._pb.Tensor(name, array) for name, array in tensors.items()])
        if result.is_final:
            del self._running[response.request_id]
            one.left.remove(response.request_id)
        if result.is_final and not one.left:
            self._end(one.sender, answer)
        else:
            one.sender.send(answer)

    def _end(self, sender: Any, answer: Any = None) -> None:
        final = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        sender.send(answer, flags=final) if answer is not None else sender.send(flags=final)


def executor_request(given: dict[str, Any]) -> Any:
    """The executor's request for one row."""
    length = int(given["input_lengths"].item())
    config = {}
    for (name, kind), passed in zip(PARAMETERS, PASSED, strict=False):
        if passed in given and not (passed == "runtime_top_p" and given[passed].item() <= 0):
            value = given[passed].item()
            config[name] = int(value) if "Size" in kind else value
    return MODULE.Request(
        input_token_ids=given["input_ids"][:length].tolist(),
        max_tokens=given["request_output_len"].item(),
        streaming=True,
        sampling_config=MODULE.SamplingConfig(**config),
        output_config=MODULE.OutputConfig(return_log_probs=bool(given.get("return_log_probs", np.zeros(1)).any())),
        end_id=given["end_id"].item() if "end_id" in given else None,
        stop_words=words(given.get("stop_words_list")),
        bad_words=words(given.get("bad_words_list")),
    )


def words(packed: Any) -> list[list[int]] | None:
    if packed is None or not packed.size:
        return None
    ids, ends = packed.tolist()
    starts = [0, *ends]
    return [ids[start:end] for start, end in zip(starts, ends, strict=False) if end != -1] or None
