"""The model `tensorrt_llm` with the embedded engine: requests join and leave the running batch between steps.

Triton runs it in a Python process of its own, with three threads: Triton's thread accepts requests, the engine thread
submits them and sends the responses, and the watcher thread looks for closed streams, requests that have timed out, and
stalled ranks. The ranks are separate processes, so that the server survives the death of a rank.
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
from trtllm_pt.serving.triton.models.base import Config, Sender, arrays, error_response, parameters, response, triton
from trtllm_pt.serving.triton.models.metrics import Metrics
from trtllm_pt.serving.triton.models.request import Output, is_stop, parse
from trtllm_pt.serving.triton.process_guard import LAST_SECONDS, ProcessGuard, server_loads_models
from trtllm_pt.text.tokenizer import end_ids

log = logging.getLogger(__name__)
_BUSY_SECONDS = 0.01  # how long the engine thread waits for tokens before it checks for new requests
_IDLE_SECONDS = 0.5  # how long it waits for new requests before it checks that the ranks still run
_STALL_SECONDS = 8.0  # a rank that has work but uses no CPU time for this long is killed


@dataclass(slots=True, eq=False)
class _ServedRequest:
    """A request from Triton that is waiting or running. It has an output for each sequence of each row of its batch."""

    sender: Sender
    name: str  # the client's id for the request; may be empty
    deadline: float | None  # on time.monotonic's clock; None: the request has no timeout
    log: RequestLog
    outputs: dict[int, Output] = field(default_factory=dict)  # the unfinished outputs, by the runtime's id
    timed_out: bool = False


class TritonPythonModel:
    """The model, with the methods that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        logs.set_up_from_environment()
        config = Config(args)
        folder = config.path("gpt_model_path").resolve()
        manifest = read_engine(folder)
        manifest.backend.check_versions(folder, manifest)
        self._name, self._limits, self._title = config.name, manifest.limits, manifest.backend.title
        self._further_ends = set(end_ids(folder / "tokenizer")[1])
        self._exclude_input = config.flag("exclude_input_in_output", False)
        waiting: int = config.data["dynamic_batching"]["default_queue_policy"]["max_queue_size"]
        self._most = manifest.options.max_batch_size + waiting if waiting else None
        self._check_seconds = config.number("cancellation_check_period_ms", 100) / 1000
        self._stats_seconds = config.number("stats_check_period_ms", 100) / 1000
        kv_tokens = config.number("max_tokens_in_paged_kv_cache", 0) or None
        drafts = manifest.backend.draft_tokens(config.text("speculative"))
        self._runtime = RemoteRuntime(folder, manifest, kv_tokens=kv_tokens, draft_tokens=drafts)
        self._metrics = Metrics(config.name, config.version, manifest.options.max_batch_size)
        self._ids = itertools.count()
        self._requests: dict[int, _ServedRequest] = {}  # by the runtime's id of each output
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._down: str | None = None  # why the engine is down; None while it works
        self._stalled: str | None = None  # the message about a stalled rank, which was killed
        self._server = os.getppid()  # read now, because the kernel gives an orphan another parent
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._run, self._watch)]
        for thread in self._threads:
            thread.start()
        self._guard = ProcessGuard(config.name)

    def finalize(self) -> None:
        self._closing.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        del self._metrics  # Triton's stub crashes if a metric outlives this call
        self._runtime.close()
        self._guard.end()

    # Methods of Triton's thread

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = Sender(request)
            try:
                self._accept(request, sender)
            except UsageError as error:
                sender.end(error_response(str(error)))
                _log_refusal(request, "invalid")
            except Exception as error:  # if it were raised, Triton would fail all requests of this call
                sender.end(error_response(f"{type(error).__name__}: {error}", "internal"))
                log.exception("a request failed unexpectedly")

    def _accept(self, request: Any, sender: Sender) -> None:
        tensors, given, name = arrays(request), parameters(request, reports=True), request.request_id()
        if is_stop(tensors):
            if not name:
                raise UsageError("stop needs a request id: the id of the request to stop")
            self._tell(lambda: self._stop(name, sender))
            return
        prompts = parse(tensors, self._limits, exclude_input=self._exclude_input, engine=self._title, parameters=given)
        wanted = [
            (
                Request(id=next(self._ids), token_ids=prompt.token_ids, sampling=sampling),
                Output(prompt, row, len(prompts), number),
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
        self._tell(lambda: self._submit(served, wanted))

    def _tell(self, action: Callable[[], None]) -> None:
        """Queue an action for the engine thread."""
        self._inbox.put(action)
        self._wake.set()

    # Methods of the engine thread

    def _run(self) -> None:
        due = time.monotonic()  # the time of the next metrics report; 0: when a request comes
        while not self._closing.is_set():
            try:
                while not self._inbox.empty():
                    self._inbox.get()()
                if self._down is None:
                    busy = bool(self._requests)  # also where the next tokens are the last ones
                    for tokens in self._runtime.poll(_BUSY_SECONDS if busy else 0):
                        self._take(tokens)
                    if (busy and time.monotonic() > due) or (due and not self._requests):
                        outputs = [served.outputs[one] for one, served in self._requests.items()]
                        prompts = [len(output.prompt.token_ids) for output in outputs if not output.token_ids]
                        self._metrics.report(self._runtime.stats(), len(outputs) - len(prompts), prompts)
                        due = time.monotonic() + self._stats_seconds if self._requests else 0.0
            except TrtllmPtError as error:
                self._fail(self._stalled or str(error))
            except Exception as error:  # without this thread, every request would hang
                log.exception("the engine thread failed")
                self._fail(f"{type(error).__name__}: {error}")
            if not self._requests:
                self._wake.wait(_IDLE_SECONDS)
                self._wake.clear()

    def _submit(self, served: _ServedRequest, wanted: list[tuple[Request, Output]]) -> None:
        if self._down is not None:
            self._end_with_error(served, f"the engine is down: {self._down}", "unavailable")
        elif self._most is not None and len(self._requests) + len(wanted) > self._most:
            message = f"the queue is full: {len(self._requests)} outputs are waiting or running"
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
        output.take(tokens)
        if tokens.finish_reason == "stop_words" and not self._further_ends.isdisjoint(tokens.token_ids[-1:]):
            output.drop_last()  # it is an end token: unlike a stop word, it is not part of the output
        if tokens.token_ids:
            self._tokens_came(served.log)
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

    def _tokens_came(self, request: RequestLog) -> None:
        now = time.monotonic()
        if request.first is None:
            self._metrics.seconds_to_first_token.observe(now - request.submitted)
        request.tokens_came(now)

    def _end_with_error(self, served: _ServedRequest, message: str, code: ErrorCode) -> None:
        """End a whole request with an error, and cancel its unfinished outputs."""
        served.sender.end(error_response(message, code))
        for number, output in served.outputs.items():
            served.log.output_ended(len(output.token_ids), code)
            del self._requests[number]
            if self._down is None:
                self._runtime.cancel(number)
        served.log.reasons = {code}
        served.log.write(log)

    def _stop(self, name: str, sender: Sender) -> None:
        """Cancel the requests with the client's id `name`. Their streams end with the tokens generated so far."""
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
        """End all requests with an error, because the ranks have exited, and take the model out of service."""
        self._down = message
        triton().Logger.log_error(f"the engine is down: {message}")
        for served in set(self._requests.values()):
            self._end_with_error(served, f"the engine is down: {message}", "unavailable")
        threading.Thread(target=self._withdraw, daemon=True).start()  # unloading waits for the engine thread

    def _withdraw(self) -> None:
        """Unload this model or stop the server, because Triton itself keeps reporting the model as ready."""
        if server_loads_models():
            triton().unload_model(self._name)
        elif not self._closing.wait(LAST_SECONDS):
            os.kill(self._server, signal.SIGTERM)

    # Methods of the watcher thread

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
        """Kill a stalled rank. The engine thread, which may be waiting for it, then sees that the job has exited."""
        pid = self._runtime.pids[rank]
        self._stalled = f"rank {rank} (process {pid}) has not answered for {_STALL_SECONDS:.0f} s; all ranks exit"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _log_refusal(request: Any, code: ErrorCode) -> None:
    log.info("request", extra=logs.fields(request_id=request.request_id(), finish_reason=code))
