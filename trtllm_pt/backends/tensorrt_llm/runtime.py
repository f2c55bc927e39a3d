"""The runtime of TensorRT engines, on TensorRT-LLM's executor, which does scheduling, paging, sampling and MPI itself.

It differs from the embedded engine: a random draw depends on the seed but not on the position, a bad word that begins
in the prompt is forbidden too, and all-reduces are not counted.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.tensorrt_llm.terms import executor_config, executor_request, finish_reasons
from trtllm_pt.errors import INSTALL_TENSORRT_LLM, MPI_OF_TENSORRT_LLM, RunError, UsageError
from trtllm_pt.job.world import World
from trtllm_pt.requests.messages import CLOSED, FinishReason, Request, Stats, Tokens, TokenScore
from trtllm_pt.requests.sequence import Sequence


class TensorRTRuntime:
    """Implements requests.messages.Runtime with the executor of rank 0, which runs on threads of its own.

    bindings: the module tensorrt_llm.bindings.executor. pids, hosts: the process and the machine of each rank.
    """

    def __init__(
        self, executor: Any, bindings: Any, manifest: EngineManifest, pids: list[int], hosts: list[str]
    ) -> None:
        self.pids, self.hosts = pids, hosts
        self._executor, self._bindings = executor, bindings
        self._limits = manifest.limits
        self._reasons = finish_reasons(bindings)
        self._sequences: dict[int, Sequence] = {}  # executor's id -> sequence in flight
        self._ids: dict[int, int] = {}  # request id -> executor's id
        self._messages: deque[Tokens] = deque()  # messages for the next poll
        self._iteration: Any = None  # the newest iteration's stats
        self._prompt_tokens = self._output_tokens = 0
        self._closed = False

    @property
    def busy(self) -> bool:
        return bool(self._messages or self._sequences)

    def submit(self, request: Request) -> None:
        self._check_open()
        self._limits.check_queued(request, self._ids)
        sequence = Sequence.start(request, self._limits.length(request), end_id=-1)
        try:
            number = self._executor.enqueue_request(executor_request(self._bindings, sequence))
        except (RuntimeError, TypeError) as error:  # a value that our checks do not cover
            raise UsageError(f"TensorRT-LLM does not accept this request: {_first_line(error)}") from None
        self._sequences[number], self._ids[request.id] = sequence, number
        self._prompt_tokens += len(request.token_ids)

    def cancel(self, request_id: int) -> None:
        if (number := self._ids.get(request_id)) is not None:
            self._end(number, "cancelled")

    def poll(self, timeout: float) -> list[Tokens]:
        """Wait for the executor until there are messages, no request is in flight, or `timeout` seconds are over."""
        self._check_open()
        deadline = time.monotonic() + timeout
        while not self._messages and self._sequences:
            left = max(0.0, deadline - time.monotonic())
            with _failures("TensorRT-LLM failed"):
                # Rounded up to whole milliseconds, because a wait of 0 ms would poll the executor without a pause.
                wait = timedelta(milliseconds=math.ceil(left * 1000))
                responses = self._executor.await_responses(wait)
            for response in responses:
                if response.request_id in self._sequences:  # otherwise it was sent before the request was cancelled
                    self._take(response)
            if not left:
                break
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def _take(self, response: Any) -> None:
        number = response.request_id
        sequence = self._sequences[number]
        if response.has_error():
            self._end(number, "error", _first_line(response.error_msg), final=True)
            return
        result = response.result
        for token, score in _new_tokens(result, sequence):
            self._output_tokens += 1
            if token >= self._limits.vocab_size:
                error = f"token {token} is beyond the vocabulary: the logits are not numbers (NaN)"
                self._end(number, "error", error, final=result.is_final)
                return
            if (ends := sequence.take(token, score)) is not None:
                self._end(number, ends, final=result.is_final)
                return
        if result.is_final:
            reason = self._reasons.get(result.finish_reasons[0], "error")
            self._output_tokens += reason == "end_id"  # the end token is sampled, but not in the response
            self._end(number, reason, final=True)
        elif message := sequence.send():
            self._messages.append(message)

    def _end(self, number: int, reason: FinishReason, error: str | None = None, *, final: bool = False) -> None:
        """Finish a request here, and in the executor unless `final` says that it has finished there."""
        sequence = self._sequences.pop(number)
        del self._ids[sequence.request.id]
        if not final:
            self._executor.cancel_request(number)
        self._messages.append(sequence.end(reason, error))

    def stats(self) -> Stats:
        self._check_open()
        if new := self._executor.get_latest_iteration_stats():
            self._iteration = new[-1]
        iteration, cache = self._iteration, self._iteration and self._iteration.kv_cache_stats
        # The counts are those of the iteration's time, and requests may have finished since.
        waiting = min(iteration.num_queued_requests, len(self._sequences)) if iteration else 0
        return Stats(
            steps=iteration.iter if iteration else 0,
            active_requests=len(self._sequences) - waiting,
            waiting_requests=waiting,
            preemptions=0,  # GUARANTEED_NO_EVICT
            kv_pages_total=cache.max_num_blocks if cache else 0,
            kv_pages_used=cache.used_num_blocks if cache else 0,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            sync_points_seen=None,
            hops_per_step=None,
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for number in self._sequences:  # otherwise `shutdown` would wait for them
                self._executor.cancel_request(number)
            self._executor.shutdown()
            self._sequences, self._ids = {}, {}
            self._executor = None  # frees the GPU's memory

    release = close

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(CLOSED)


def _new_tokens(result: Any, sequence: Sequence) -> Iterator[tuple[int, TokenScore | None]]:
    """Return the new tokens of a response with their log-probs. A response has only new tokens, but log-probs of all
    tokens so far."""
    tokens: list[int] = result.output_token_ids[0]
    if not sequence.sampling.log_probs:
        return zip(tokens, itertools.repeat(None))
    first = len(sequence.scores)
    return zip(tokens, map(TokenScore, result.log_probs[0][first : first + len(tokens)]), strict=True)


def open_rank(
    folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None
) -> TensorRTRuntime | None:
    """Join the ranks of an engine and load this one, as described at Backend.open_rank.

    Raises RunError if TensorRT-LLM cannot load the engine.
    """
    if threads is not None:
        raise UsageError(f"threads ({threads}) applies only to the embedded engine; a TensorRT engine runs on a GPU")
    if kv_tokens is not None and manifest.windows_differ:
        raise UsageError(
            f"kv_tokens ({kv_tokens}) cannot limit the KV cache of a model whose layers have different windows: "
            "TensorRT-LLM ignores it"
        )
    check_gpus(World(None))
    bindings = _import_bindings()  # before MPI starts, because it sets variables that Open MPI reads then
    world = World.join(manifest.ranks, MPI_OF_TENSORRT_LLM)
    check_gpus(world)
    if not (folder / f"rank{world.rank}.engine").exists():
        raise UsageError(f"{folder} is incomplete: rank{world.rank}.engine is missing; build the engine again")
    with _failures(f"TensorRT-LLM could not load {folder}"):
        config = executor_config(bindings, manifest, kv_tokens)
        executor = bindings.Executor(folder, bindings.ModelType.DECODER_ONLY, config)
    pids, hosts = world.gather_all(os.getpid()), world.gather_all(socket.gethostname())
    if executor.can_enqueue_requests():
        return TensorRTRuntime(executor, bindings, manifest, pids, hosts)
    executor.shutdown()  # returns when the executor of rank 0 has shut down
    return None


def _import_bindings() -> Any:
    """Import tensorrt_llm.bindings.executor without letting it print to stdout."""
    os.environ.setdefault("TLLM_LOG_LEVEL", "WARNING")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import tensorrt_llm.bindings.executor as bindings
        except (ImportError, OSError) as error:
            raise UsageError(
                f"TensorRT-LLM cannot be imported ({_first_line(error)}): {INSTALL_TENSORRT_LLM}"
            ) from None
    return bindings


def check_gpus(world: World) -> None:
    """Raise UsageError if this machine has fewer GPUs than ranks. CUDA_VISIBLE_DEVICES may differ between ranks."""
    import torch

    host = socket.gethostname()
    mine = host, os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    ranks = [rank for rank in world.gather_all(mine) if rank[0] == host]
    found = sum(count for _, _, count in set(ranks))
    if found < len(ranks):
        needed = f"{len(ranks)} ranks" if len(ranks) > 1 else "a rank"
        raise UsageError(f"this machine has {found} NVIDIA GPUs for {needed} of the engine: {INSTALL_TENSORRT_LLM}")


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn the executor's errors, which contain a C++ stack trace, into a RunError of one line."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"{what}: {_first_line(error)}") from None


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
