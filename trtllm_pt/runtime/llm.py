"""The Python API: it generates text from prompts with any engine, on any number of ranks."""

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
from trtllm_pt.requests.messages import (
    FinishReason,
    Request,
    Runtime,
    SamplingParams,
    Tokens,
    TokenScore,
    TopLogProbs,
)
from trtllm_pt.requests.request_log import RequestLog
from trtllm_pt.text.stream import TextStream
from trtllm_pt.text.tokenizer import end_ids, load_tokenizer

log = logging.getLogger(__name__)
Prompt = str | Sequence[int]
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The output for one prompt."""

    text: str  # empty if the engine has no tokenizer
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # one per token if requested, else empty
    top_log_probs: tuple[TopLogProbs, ...]  # the likeliest tokens at each token's position if requested, else empty
    prompt_scores: tuple[TokenScore, ...]  # of the prompt's tokens from the second on if requested, else empty
    logits: tuple[bytes, ...]  # raw ones, float32 [V]: of each token, or with context_logits of the first
    cached_tokens: int  # tokens of the prompt that were found in the KV cache
    finish_reason: FinishReason
    ttft_s: float  # seconds from submission to the first token
    tokens_per_s: float  # the rate after the first tokens; for an output that came at once, the rate including them
    sync_points_seen: int | None  # all-reduces per forward pass, counted at run time; None: not counted


class LLM:
    """A running engine. It is a context manager; leaving the block, or `close`, stops its ranks.

        with LLM("engines/demo") as llm:
            [result] = llm.generate(["def main("], SamplingParams(max_tokens=32))

    If mpirun started this process, the constructor joins the ranks of that mpirun: it returns on rank 0, and the other
    ranks work for rank 0 and then exit. Otherwise it starts the engine's ranks itself.

    engine_dir: an engine directory that `build` wrote. threads: threads per rank of an embedded engine; None divides
    the machine's cores among the ranks. kv_tokens: capacity of the KV cache in tokens; None: enough for max_batch_size
    requests, but at most half of the available memory (TensorRT: nine tenths of the GPU's free memory). speculative:
    "ngram" or "ngram:K" drafts up to K (8) tokens from earlier ones of the same sequence, and computes them in one
    step; the output stays the same, bit for bit. Raises UsageError if the engine cannot run on this machine, and
    RunError if its ranks fail to start.
    """

    def __init__(
        self,
        engine_dir: str | Path,
        *,
        threads: int | None = None,
        kv_tokens: int | None = None,
        speculative: str | None = None,
    ) -> None:
        folder = Path(engine_dir)
        self.manifest = read_engine(folder)
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self._end_id, self._further_ends = end_ids(folder / "tokenizer")
        self._runtime = start_runtime(folder, self.manifest, threads, kv_tokens, speculative)
        self._limits = self.manifest.limits
        self._next_id = 0
        self._outputs: dict[int, _Output] = {}  # of the requests that a caller is reading, by id

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
    ) -> list[RunResult]:
        """Generate the outputs of all prompts, in one batch. The results are in the order of the prompts.

        prompts: texts or token ids. sampling: parameters for all prompts, or one set for each; greedy decoding if left
        out. stop: strings at which an output ends; they are part of its text only with include_stop_words.
        skip_special_tokens: whether texts leave out special tokens. Raises UsageError for a prompt or a value that the
        engine does not accept, and RunError if a rank fails.
        """
        if isinstance(prompts, str):
            raise UsageError(f"prompts ({prompts[:40]!r}) must be a list; for a single prompt, pass [prompt]")
        each = sampling if isinstance(sampling, Sequence) else [sampling or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise UsageError(
                f"sampling has {len(each)} entries for {len(prompts)} prompts; pass one for all, or one per prompt"
            )
        requests = [self._request(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
        outputs = [self._submit(request, stop, skip_special_tokens) for request in requests]
        with self._reading(outputs):
            while any(output.finish_reason is None for output in outputs):
                while not self._poll():
                    pass
                for output in outputs:
                    output.check()
        return self._results(outputs)

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
    ) -> Iterator[str | RunResult]:
        """Generate the output of one prompt. Yields its text, piece by piece, and then its RunResult.

        The arguments and the errors are those of `generate`. A generator that is closed early cancels the request.
        """
        output = self._submit(self._request(prompt, sampling or SamplingParams()), stop, skip_special_tokens)
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

    @property
    def end_id(self) -> int:
        """The tokenizer's end token, or -1 if it has none."""
        return self._end_id

    def close(self) -> None:
        """Stop all ranks. Requests that are in flight are dropped."""
        self._runtime.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt. If the engine has no tokenizer, a text must list token ids, as in `1 2 3`.

        Raises UsageError for an empty text, for a text that is not valid UTF-8, and for one that lists no token ids.
        """
        if not isinstance(prompt, str):
            return tuple(prompt)
        if not prompt:
            raise UsageError("the prompt is empty")
        if self.tokenizer is not None:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise UsageError("the prompt is not valid UTF-8: it contains an unpaired surrogate") from None
            return tuple(self.tokenizer.encode(prompt).ids)
        try:
            return tuple(int(word) for word in prompt.replace(",", " ").split())
        except ValueError:
            raise UsageError(
                f"this engine has no tokenizer: the prompt ({prompt!r}) must be a list of token ids, such as '1 2 3'"
            ) from None

    def _request(self, prompt: Prompt, sampling: SamplingParams) -> Request:
        if sampling.end_id is None:
            ends = (*sampling.stop_token_ids, *self._further_ends)
            sampling = replace(sampling, end_id=self._end_id, stop_token_ids=ends)
        request = Request(id=self._next_id, token_ids=self.encode(prompt), sampling=sampling)
        self._next_id += 1
        self._limits.check(request)  # every request of a batch is checked before the first one is queued
        return request

    def _submit(self, request: Request, stop: Sequence[str], skip_special_tokens: bool) -> _Output:
        if stop and self.tokenizer is None:
            raise UsageError(f"stop ({list(stop)!r}) needs a tokenizer, and this engine has none: use stop_words")
        text = None
        if self.tokenizer is not None:
            text = TextStream(
                self.tokenizer,
                stop,
                prompt=request.token_ids,
                min_tokens=request.sampling.min_tokens,
                skip_special_tokens=skip_special_tokens,
                include_stop=request.sampling.include_stop_words,
            )
        self._runtime.submit(request)
        now = time.perf_counter()
        line = RequestLog(request_id=str(request.id), prompt_tokens=len(request.token_ids), submitted=now)
        output = self._outputs[request.id] = _Output(request.id, text, now, line)
        return output

    @contextlib.contextmanager
    def _reading(self, outputs: list[_Output]) -> Iterator[None]:
        """Cancel the unfinished outputs when the block is left early."""
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
        """Receive messages for all outputs, as several streams may be read in turn. Returns whether an output ended."""
        messages = self._runtime.poll(_POLL_SECONDS)
        now = time.perf_counter()
        ended = False
        for message in messages:
            output = self._outputs.get(message.id)
            if output is None or output.finish_reason is not None:
                continue  # it was cancelled, or it reached a stop string
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
    """The output of one request while it is generated. Times are those of time.perf_counter."""

    id: int
    text: TextStream | None
    submitted: float
    log: RequestLog
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[TopLogProbs] = field(default_factory=list)
    prompt_scores: tuple[TokenScore, ...] = ()
    logits: list[bytes] = field(default_factory=list)
    cached_tokens: int = 0
    first: float = 0.0  # time of the first tokens
    early: int = 0  # how many came then
    last: float = 0.0  # time of the latest tokens
    finish_reason: FinishReason | None = None
    error: str | None = None

    def take(self, message: Tokens, now: float) -> None:
        if not self.first:
            self.first, self.early = now, len(message.token_ids)
        if message.token_ids or not self.last:
            self.last = now
            self.log.tokens_came(now)
        self.token_ids += message.token_ids
        self.log_probs += message.log_probs
        self.top_log_probs += message.top_log_probs
        self.prompt_scores += message.prompt_scores
        self.logits += message.logits
        self.cached_tokens = message.cached_tokens
        self.finish_reason, self.error = message.finish_reason, message.error
        if self.text is not None:
            delta = self.text.push(message.token_ids)
            if message.finish_reason is not None:
                delta += self.text.flush()
            if delta:
                self.pieces.append(delta)
            if self.text.stopped:
                self._cut(self.text.tokens)
        if self.finish_reason is not None:
            self.log.output_ended(len(self.token_ids), self.finish_reason)

    def _cut(self, tokens: int) -> None:
        """End the output with the token that completed a stop string. Later ones may have come in the same message."""
        del self.token_ids[tokens:], self.log_probs[tokens:], self.top_log_probs[tokens:], self.logits[tokens:]
        self.finish_reason = "stop_words"

    def check(self) -> None:
        """Raise the request's error if it failed: UsageError if the request itself is wrong."""
        if self.error is not None:
            raise (UsageError if self.finish_reason == "invalid" else RunError)(self.error)

    def result(self, sync_points_seen: int | None) -> RunResult:
        assert self.finish_reason is not None
        count = len(self.token_ids)
        rate = (
            (count - self.early) / (self.last - self.first)
            if self.last > self.first
            else count / (self.last - self.submitted)
        )
        return RunResult(
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            log_probs=tuple(self.log_probs),
            top_log_probs=tuple(self.top_log_probs),
            prompt_scores=self.prompt_scores,
            logits=tuple(self.logits),
            cached_tokens=self.cached_tokens,
            finish_reason=self.finish_reason,
            ttft_s=self.first - self.submitted,
            tokens_per_s=rate,
            sync_points_seen=sync_points_seen,
        )


def start_runtime(
    folder: Path,
    manifest: EngineManifest,
    threads: int | None,
    kv_tokens: int | None,
    speculative: str | None = None,
) -> Runtime:
    """Return the running engine of a folder. If mpirun started this process, ranks other than 0 never return.

    The parameters and the errors are those of LLM. A process that mpirun did not start, or a single rank, needs no MPI.
    """
    manifest.backend.check_versions(folder, manifest)
    drafts = manifest.backend.draft_tokens(speculative)
    if launched_ranks() is None and manifest.ranks > 1:
        from trtllm_pt.runtime.remote import RemoteRuntime

        return RemoteRuntime(folder, manifest, threads=threads, kv_tokens=kv_tokens, draft_tokens=drafts)
    runtime = manifest.backend.open_rank(folder, manifest, threads=threads, kv_tokens=kv_tokens, draft_tokens=drafts)
    if runtime is None:
        sys.exit(0)
    if manifest.ranks > 1:
        atexit.register(runtime.release)
    return runtime
