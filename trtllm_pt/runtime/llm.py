"""The Python API: prompts in, text out, whatever the engine and however many ranks."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.job.launchers import launched_ranks
from trtllm_pt.requests.messages import FinishReason, Request, Runtime, SamplingParams, Tokens
from trtllm_pt.requests.request_log import RequestLog
from trtllm_pt.text.stream import TextStream
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

log = logging.getLogger(__name__)
Prompt = str | Sequence[int]
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One prompt's output."""

    text: str  # empty for an engine without a tokenizer
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # one per token where asked for
    finish_reason: FinishReason
    ttft_s: float  # from submission to the first token
    tokens_per_s: float  # after the first token; for a single one, with it
    sync_points_seen: int | None  # all-reduces per forward, counted at run time


class LLM:
    """A running engine directory. A context manager: `close` ends its ranks.

        with LLM("engines/demo") as llm:
            [result] = llm.generate(["def main("], SamplingParams(max_tokens=32))

    Started by mpirun, it joins those ranks: rank 0 goes on from here, the others serve it and then exit. Started alone,
    it starts the engine's ranks itself. threads: per rank of an embedded engine; None: the machine's cores divided
    among the ranks. kv_tokens: room of the KV cache; None: enough for every slot, within half of the memory available
    (TensorRT: nine tenths of the GPU's). Raises UsageError for an engine that cannot run here.
    """

    def __init__(self, engine_dir: str | Path, *, threads: int | None = None, kv_tokens: int | None = None) -> None:
        folder = Path(engine_dir)
        self.manifest = read_engine(folder)
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self._end_id, self._stop_words = end_ids(folder / "tokenizer")
        self._runtime = start_runtime(folder, self.manifest, threads, kv_tokens)
        self._limits = self.manifest.limits
        self._next_id = 0
        self._outputs: dict[int, _Output] = {}  # of the requests that somebody reads

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: Sequence[str] = (),
    ) -> list[RunResult]:
        """All prompts in one batch. sampling: one for all, or one each; greedy where left out. stop: strings that end
        a text and are kept out of it. Raises UsageError for a prompt or a value that the engine cannot take."""
        if isinstance(prompts, str):
            raise UsageError("prompts must be a list: for one prompt, [prompt]")
        each = sampling if isinstance(sampling, Sequence) else [sampling or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise UsageError(
                f"{len(each)} sampling parameters for {len(prompts)} prompts: give one for all, or one each"
            )
        requests = [self._request(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        outputs = [self._submit(request, stop) for request in requests]
        with self._reading(outputs):
            while any(output.finish_reason is None for output in outputs):
                while not self._poll():
                    pass
                for output in outputs:
                    output.check()
        return self._results(outputs)

    def stream(
        self, prompt: Prompt, sampling: SamplingParams | None = None, *, stop: Sequence[str] = ()
    ) -> Iterator[str | RunResult]:
        """The text of one prompt, piece by piece, and at the end its RunResult."""
        output = self._submit(self._request(prompt, sampling or SamplingParams()), stop)
        with self._reading([output]):
            sent = 0
            while True:
                while sent < len(output.pieces):
                    yield output.pieces[sent]
                    sent += 1
                output.check()
                if output.finish_reason is not None:
                    break
                self._poll()
        yield self._results([output])[0]

    def close(self) -> None:
        self._runtime.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids. Without a tokenizer a text prompt is token ids, too: `1 2 3`."""
        if not isinstance(prompt, str):
            return tuple(prompt)
        if not prompt:
            raise UsageError("the prompt is empty")
        if self.tokenizer is not None:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise UsageError("the prompt is not valid UTF-8") from None
            return tuple(self.tokenizer.encode(prompt).ids)
        try:
            return tuple(int(word) for word in prompt.replace(",", " ").split())
        except ValueError:
            raise UsageError(
                f"this engine has no tokenizer: give the prompt as token ids such as '1 2 3', not {prompt!r}"
            ) from None

    def _request(self, prompt: Prompt, sampling: SamplingParams) -> Request:
        if sampling.end_id is None:
            sampling = replace(sampling, end_id=self._end_id, stop_words=(*sampling.stop_words, *self._stop_words))
        request = Request(id=self._next_id, token_ids=self.encode(prompt), sampling=sampling)
        self._next_id += 1
        self._limits.check(request)  # all of a batch before the first is queued
        return request

    def _submit(self, request: Request, stop: Sequence[str]) -> _Output:
        if stop and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer, which this engine does not have: use stop_words")
        text = None if self.tokenizer is None else TextStream(self.tokenizer, stop)
        self._runtime.submit(request)
        now = time.perf_counter()
        line = RequestLog(request_id=str(request.id), prompt_tokens=len(request.token_ids), submitted=now)
        output = self._outputs[request.id] = _Output(request.id, text, now, line)
        return output

    @contextlib.contextmanager
    def _reading(self, outputs: list[_Output]) -> Iterator[None]:
        """Left early, it cancels what is unfinished."""
        try:
            yield
        finally:
            for output in outputs:
                del self._outputs[output.id]
                if output.finish_reason is None:
                    self._runtime.cancel(output.id)
                    output.log.output_ended(len(output.token_ids), "cancelled")
                    output.log.write(log)

    def _poll(self) -> bool:
        """Takes what has come, each message to its output: several may be read by turns. Whether one has ended."""
        messages = self._runtime.poll(_POLL_SECONDS)
        now = time.perf_counter()
        ended = False
        for message in messages:
            output = self._outputs.get(message.id)
            if output is None or output.finish_reason is not None:
                continue  # it was cancelled, or a stop string ended it
            output.take(message, now)
            if output.finish_reason is not None:
                ended = True
                output.log.write(log)
                if message.finish_reason is None:
                    self._runtime.cancel(output.id)
        return ended

    def _results(self, outputs: list[_Output]) -> list[RunResult]:
        seen = self._runtime.stats().sync_points_seen
        return [output.result(seen) for output in outputs]


@dataclass(slots=True)
class _Output:
    """A request's output as it grows."""

    id: int
    text: TextStream | None
    submitted: float
    log: RequestLog
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    first: float = 0.0  # when the first token came, and the last
    last: float = 0.0
    finish_reason: FinishReason | None = None
    error: str | None = None

    def take(self, message: Tokens, now: float) -> None:
        self.first, self.last = self.first or now, now
        self.token_ids += message.token_ids
        self.log_probs += message.log_probs
        self.finish_reason, self.error = message.finish_reason, message.error
        self.log.tokens_came(now)
        if self.text is not None:
            delta = self.text.push(message.token_ids)
            if message.finish_reason is not None:
                delta += self.text.flush()
            if delta:
                self.pieces.append(delta)
            if self.text.stopped and message.finish_reason is None:
                self.finish_reason = "stop_words"
        if self.finish_reason is not None:
            self.log.output_ended(len(self.token_ids), self.finish_reason)

    def check(self) -> None:
        """Raises RunError where the request failed."""
        if self.error is not None:
            raise RunError(self.error)

    def result(self, sync_points_seen: int | None) -> RunResult:
        assert self.finish_reason is not None
        count = len(self.token_ids)
        rate = (
            (count - 1) / (self.last - self.first) if self.last > self.first else count / (self.last - self.submitted)
        )
        return RunResult(
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            log_probs=tuple(self.log_probs),
            finish_reason=self.finish_reason,
            ttft_s=self.first - self.submitted,
            tokens_per_s=rate,
            sync_points_seen=sync_points_seen,
        )


def start_runtime(folder: Path, manifest: EngineManifest, threads: int | None, kv_tokens: int | None) -> Runtime:
    manifest.backend.check_versions(folder, manifest)
    if launched_ranks() is None and manifest.ranks > 1:
        from trtllm_pt.runtime.remote import RemoteRuntime

        return RemoteRuntime(folder, manifest, threads=threads, kv_tokens=kv_tokens)
    runtime = manifest.backend.open_rank(folder, manifest, threads=threads, kv_tokens=kv_tokens)
    if runtime is None:
        sys.exit(0)
    if manifest.ranks > 1:
        atexit.register(runtime.release)
    return runtime
