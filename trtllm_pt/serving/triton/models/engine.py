"""The model `tensorrt_llm` with the embedded engine: requests join the running batch and leave it between steps.

It runs in a Python process of Triton's, in three threads: Triton's accepts requests, the engine's submits them and
sends the responses, and the watching thread looks for closed streams, requests past their timeout, and stalled ranks.
The ranks are processes of their own, so that the server outlives a rank that dies.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtllm_pt import logs
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import TrtllmPtError, UsageError
from trtllm_pt.job.stalled_rank import StallDetector
from trtllm_pt.requests.messages import Request, Tokens
from trtllm_pt.requests.request_log import RequestLog
from trtllm_pt.runtime.remote import RemoteRuntime
from trtllm_pt.serving.error_codes import ErrorCode
from trtllm_pt.serving.triton.models.base import Config, Sender, arrays, error_response, response, triton
from trtllm_pt.serving.triton.models.metrics import Metrics
from trtllm_pt.serving.triton.models.request import Output, is_stop, parse
from trtllm_pt.serving.triton.process_guard import LAST_SECONDS, ProcessGuard, server_loads_models

log = logging.getLogger(__name__)
_BUSY_SECONDS = 0.01  # how long the engine's thread waits for tokens before it looks for new requests
_IDLE_SECONDS = 0.5  # and for new requests, before it looks whether the ranks are still there
_STALL_SECONDS = 8.0  # without processor time, after which a rank that has work is ended


@dataclass(slots=True, eq=False)
class _ServedRequest:
    """A request of Triton that waits or runs: one output per row of its batch and sequence."""

    sender: Sender
    name: str  # the client's id for it; may be empty
    deadline: float | None
    log: RequestLog
    outputs: dict[int, Output] = field(default_factory=dict)  # unfinished ones, by the runtime's id
    timed_out: bool = False


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        logs.set_up_from_environment()
        config = Config(args)
        folder = config.path("gpt_model_path").resolve()
        manifest = read_engine(folder)
        manifest.backend.check_versions(folder, manifest)
        self._name, self._limits = config.name, manifest.limits
        self._exclude_input = config.flag("exclude_input_in_output", False)
        waiting: int = config.data["dynamic_batching"]["default_queue_policy"]["max_queue_size"]
        self._most = manifest.options.max_batch_size + waiting if waiting else None
        self._check_seconds = config.number("cancellation_check_period_ms", 100) / 1000
        self._stats_seconds = config.number("stats_check_period_ms", 100) / 1000
        kv_tokens = config.number("max_tokens_in_paged_kv_cache", 0) or None
        self._runtime = RemoteRuntime(folder, manifest, kv_tokens=kv_tokens)
        self._metrics = Metrics(config.name, config.version, manifest.options.max_batch_size)
        self._ids = itertools.count()
        self._requests: dict[int, _ServedRequest] = {}  # by the runtime's id of each output
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._down: str | None = None  # the reason, once the engine is down
        self._stalled: str | None = None  # which rank was, and so was ended
        self._server = os.getppid()  # now: an orphan would get another one
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._run, self._watch)]
        for thread in self._threads:
            thread.start()
        self._guard = ProcessGuard(config.name)

    def finalize(self) -> None:
        self._closing.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        del self._metrics  # Triton's stub crashes where a metric outlives this call
        self._runtime.close()
        self._guard.end()

    # Triton's thread

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = Sender(request)
            try:
                self._accept(request, sender)
            except UsageError as error:
                sender.end(error_response(str(error)))
                _log_refusal(request, "invalid")
            except Exception as error:  # raised on, it would end what this call accepted before
                sender.end(error_response(f"{type(error).__name__}: {error}", "internal"))
                log.exception("a request failed unexpectedly")

    def _accept(self, request: Any, sender: Sender) -> None:
        tensors, name = arrays(request), request.request_id()
        if is_stop(tensors):
            if not name:
                raise UsageError("stop needs the id of the request to end")
            self._tell(lambda: self._stop(name, sender))
            return
        prompts = parse(tensors, self._limits, exclude_input=self._exclude_input)
        wanted = [
            (
                Request(id=next(self._ids), token_ids=prompt.token_ids, sampling=sampling),
                Output(prompt, row, len(prompts), number, [], []),
            )
            for row, prompt in enumerate(prompts)
            for number, sampling in enumerate(prompt.samplings())
        ]
        microseconds, now = request.timeout(), time.monotonic()
        prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        served = _ServedRequest(
            sender,
            name,
            now + microseconds / 1e6 if microseconds else None,
            RequestLog(request_id=name or str(wanted[0][0].id), prompt_tokens=prompt_tokens, submitted=now),
        )
        for one, _ in wanted:
            self._limits.check(one)
        self._tell(lambda: self._submit(served, wanted))

    def _tell(self, action: Callable[[], None]) -> None:
        """Queue an action for the engine's thread."""
        self._inbox.put(action)
        self._wake.set()

    # The engine's thread

    def _run(self) -> None:
        due = 0.0  # when the next figures are
        while not self._closing.is_set():
            try:
                while not self._inbox.empty():
                    self._inbox.get()()
                if self._down is None:
                    for tokens in self._runtime.poll(_BUSY_SECONDS if self._requests else 0):
                        self._take(tokens)
                    if (self._requests and time.monotonic() > due) or (due and not self._requests):
                        outputs = [served.outputs[one] for one, served in self._requests.items()]
                        prompts = [len(output.prompt.token_ids) for output in outputs if not output.token_ids]
                        self._metrics.report(self._runtime.stats(), len(outputs) - len(prompts), prompts)
                        due = time.monotonic() + self._stats_seconds if self._requests else 0.0
            except TrtllmPtError as error:
                self._fail(self._stalled or str(error))
            except Exception as error:  # with this thread every request would hang
                log.exception("the engine's thread failed")
                self._fail(f"{type(error).__name__}: {error}")
            if not self._requests:
                self._wake.wait(_IDLE_SECONDS)
                self._wake.clear()

    def _submit(self, served: _ServedRequest, wanted: list[tuple[Request, Output]]) -> None:
        if self._down is not None:
            self._end_with_error(served, f"the engine is down: {self._down}", "unavailable")
        elif self._most is not None and len(self._requests) + len(wanted) > self._most:
            message = f"the queue is full: {len(self._requests)} outputs wait or run"
            self._end_with_error(served, message, "queue_full")
        else:
            for request, output in wanted:
                served.outputs[request.id] = output
                self._requests[request.id] = served
                self._runtime.submit(request)
                self._metrics.input_tokens.observe(len(request.token_ids))

    def _take(self, tokens: Tokens) -> None:
        served = self._requests.get(tokens.id)
        if served is None:
            return
        output = served.outputs[tokens.id]
        output.token_ids += tokens.token_ids
        output.log_probs += tokens.log_probs
        if tokens.token_ids:
            served.log.tokens_came(time.monotonic())
        if tokens.finish_reason is None:
            if output.prompt.streaming:
                served.sender.send(response(output.response()))
            return
        del served.outputs[tokens.id], self._requests[tokens.id]
        self._metrics.output_tokens.observe(len(output.token_ids))
        made = len(output.token_ids)
        if served.timed_out:
            served.log.output_ended(made, "timed_out")
            self._end_with_error(served, f"the request timed out after {made} tokens", "timed_out")
        elif tokens.error is not None:
            served.log.output_ended(made, tokens.finish_reason)
            code: ErrorCode = "invalid" if tokens.finish_reason == "invalid" else "internal"
            self._end_with_error(served, tokens.error, code)
        else:
            served.log.output_ended(made, tokens.finish_reason)
            if served.outputs:
                served.sender.send(response(output.response()))
            else:
                served.sender.end(response(output.response()))
                served.log.write(log)

    def _end_with_error(self, served: _ServedRequest, message: str, code: ErrorCode) -> None:
        """Answer a whole request with an error, and cancel those of its outputs that are unfinished."""
        served.sender.end(error_response(message, code))
        for number, output in served.outputs.items():
            served.log.output_ended(len(output.token_ids), code)
            del self._requests[number]
            if self._down is None:
                self._runtime.cancel(number)
        served.log.reasons = {code}
        served.log.write(log)

    def _stop(self, name: str, sender: Sender) -> None:
        """Cancel the requests with that id; their streams end with the tokens that they have."""
        if self._down is not None:
            sender.end(error_response(f"the engine is down: {self._down}", "unavailable"))
            return
        for served in {served for served in self._requests.values() if served.name == name}:
            self._cancel(served)
        sender.end(triton().InferenceResponse())

    def _cancel(self, served: _ServedRequest, timed_out: bool = False) -> None:
        served.timed_out = timed_out
        if self._down is None:
            for number in served.outputs:
                self._runtime.cancel(number)

    def _fail(self, message: str) -> None:
        """End all requests: the ranks are gone."""
        self._down = message
        triton().Logger.log_error(f"the engine is down: {message}")
        for served in set(self._requests.values()):
            self._end_with_error(served, f"the engine is down: {message}", "unavailable")
        threading.Thread(target=self._withdraw, daemon=True).start()  # an unloading model waits for this thread

    def _withdraw(self) -> None:
        """Unload this model or end the server, for Triton itself goes on calling the model ready."""
        if server_loads_models():
            triton().unload_model(self._name)
        elif not self._closing.wait(LAST_SECONDS):
            os.kill(self._server, signal.SIGTERM)

    # The watching thread

    def _watch(self) -> None:
        seen: set[_ServedRequest] = set()
        detector = StallDetector(self._runtime.pids, round(_STALL_SECONDS / self._check_seconds))
        while not self._closing.wait(self._check_seconds):
            requests = set(self._requests.copy().values())
            if not requests:
                detector.reset()
            elif self._stalled is None and (rank := detector.stalled()) is not None:
                self._end_stalled(rank)
            for served in requests - seen:
                if served.sender.is_cancelled():
                    seen.add(served)
                    self._tell(lambda served=served: self._cancel(served))  # type: ignore[misc]
                elif served.deadline is not None and time.monotonic() > served.deadline:
                    seen.add(served)
                    self._tell(lambda served=served: self._cancel(served, timed_out=True))  # type: ignore[misc]
            seen &= requests

    def _end_stalled(self, rank: int) -> None:
        """Kill a stalled rank. The engine's thread, which may be waiting for it, then sees that the job has ended."""
        pid = self._runtime.pids[rank]
        self._stalled = f"rank {rank} (process {pid}) has not answered for {_STALL_SECONDS:.0f} s; all ranks end"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _log_refusal(request: Any, code: ErrorCode) -> None:
    log.info("request", extra=logs.fields(request_id=request.request_id(), finish_reason=code))
