"""What the stand-in executor does: requests in flight on all ranks of an MPI job, in step, with toy logits.

Written after TensorRT-LLM's own C++: the order of temperature, penalties and bans; end ids that are no output; words
that are looked for in prompt and output alike; log-probs of all tokens so far in every response; a shutdown that waits
for what is in flight.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.backends.tensorrt_llm.executor.bindings import load, make
from trtllm_pt.batching.sampling import draw, uniform

STEP_SECONDS = 0.001
FAILS, NOT_A_NUMBER = 7, 8  # a prompt that begins with this: fails in its third step; has logits that are no numbers
CHUNK = 16  # tokens of a prompt in a step
TERMINATE = -1


def toy_logits(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """float64 [V], a function of the tokens before."""
    digest = hashlib.sha256(np.array(tokens, np.int64).tobytes()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(0, 2, vocab_size).astype(np.float32)


@dataclass(slots=True)
class Running:
    """A request in the executor."""

    id: int
    request: Any
    tokens: list[int]  # prompt and output
    log_probs: list[float] = field(default_factory=list)
    computed: int = 0  # tokens of the prompt
    sent: int = 0
    reason: str = "NOT_FINISHED"
    error: str | None = None

    @property
    def prompt(self) -> int:
        return len(self.request.input_token_ids)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt :]


class ExecutorMethods:
    """One rank's executor."""

    @classmethod
    def start(cls, module: Any, model_path: Path, model_type: Any, executor_config: Any) -> ExecutorMethods:
        assert model_type is module.ModelType.DECODER_ONLY
        return cls(module, Path(model_path), executor_config)

    def __init__(self, module: Any, folder: Path, config: Any) -> None:
        engine = json.loads((folder / "config.json").read_text())
        ranks = engine["pretrained_config"]["mapping"]["tp_size"]
        self.module, self.config = module, config
        self.comm, self.rank, self.size = _join(ranks)
        if (folder / f"rank{self.rank}.engine").read_bytes() == b"broken":
            raise RuntimeError("[TensorRT-LLM][ERROR] Failed to deserialize cuda engine.\n1  0x7f frame\n2  frame")
        vocab_size = engine["pretrained_config"]["vocab_size"]
        self.vocab_size, self.padded = vocab_size, -(-vocab_size // ranks) * ranks
        self.slots = engine["build_config"]["max_batch_size"]
        self.queued: deque[tuple[int, Any]] = deque()
        self.active: list[Running] = []
        self.cancelled: set[int] = set()
        self.cancels: list[int] = []  # all there were
        self.requests: list[Any] = []
        self.responses: list[Any] = []
        self.iteration = 0
        self.stats: list[Any] = []
        self.changed = threading.Condition()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    # What the bindings offer

    def can_enqueue_requests(self) -> bool:
        return self.rank == 0

    def enqueue_request(self, request: Any) -> int:
        assert self.rank == 0
        with self.changed:
            self.requests.append(request)
            self.queued.append((len(self.requests), request))
            self.changed.notify_all()
            return len(self.requests)

    def await_responses(self, timeout: timedelta | None = None) -> list[Any]:
        with self.changed:
            seconds = None if timeout is None else timeout.total_seconds()
            self.changed.wait_for(lambda: self.responses or self.failure, seconds)
            if self.failure is not None:
                raise AssertionError("the stand-in failed") from self.failure
            taken, self.responses = self.responses, []
            return taken

    def cancel_request(self, id: int) -> None:
        with self.changed:
            self.cancelled.add(id)
            self.cancels.append(id)

    def get_latest_iteration_stats(self) -> list[Any]:
        with self.changed:
            taken, self.stats = self.stats, []
            return taken

    def shutdown(self) -> None:
        with self.changed:
            if self.rank == 0:
                self.queued.append((TERMINATE, None))
            self.changed.notify_all()
        self.thread.join()

    # All ranks in step

    def _work(self) -> None:
        try:
            self._loop()
        except Exception as error:
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def _loop(self) -> None:
        ends = False
        while not ends or self.active:
            new, cancelled = self._tell(self._next()) if self.rank == 0 else self._hear()
            ends = ends or any(number == TERMINATE for number, _ in new)
            self.active += [Running(n, _Request(r), list(r["input_token_ids"])) for n, r in new if n != TERMINATE]
            for running in self.active:
                if running.id in cancelled:
                    running.reason = "CANCELLED"
            self._step()
            time.sleep(STEP_SECONDS)

    def _next(self) -> tuple[list[tuple[int, Any]], set[int]]:
        """Rank 0: what goes into the next step; waits for something to do."""
        with self.changed:
            self.changed.wait_for(lambda: self.queued or self.active)
            new = []
            while self.queued and len(self.active) + len(new) < self.slots:
                number, request = self.queued.popleft()
                new.append((number, None if request is None else _plain(request)))
            cancelled = {r.id for r in self.active} & self.cancelled
            self.cancelled -= cancelled
            return new, cancelled

    def _tell(self, step: Any) -> Any:
        for rank in range(1, self.size):
            self.comm.send(step, rank)
        return step

    def _hear(self) -> Any:
        while not self.comm.Iprobe(0):
            time.sleep(STEP_SECONDS)
        return self.comm.recv(source=0)

    def _step(self) -> None:
        going = []
        for running in self.active:
            running.computed += min(CHUNK, running.prompt - running.computed)
            if running.reason == "NOT_FINISHED" and running.computed == running.prompt:
                going.append(running)
        for running, row in zip(going, self._logits(going), strict=True):
            self._sample(running, row, going)
        done = self.active
        self.active = [r for r in self.active if r.reason == "NOT_FINISHED" and r.error is None]
        if self.rank == 0:
            self._respond(done)

    def _logits(self, going: list[Running]) -> np.ndarray:
        """[R, V]; each rank knows a part of the vocabulary."""
        part = slice(self.rank * self.padded // self.size, (self.rank + 1) * self.padded // self.size)
        rows = np.full((len(going), self.padded), 99.0, np.float32)  # the padding, were it not masked, would win
        for row, running in zip(rows, going, strict=True):
            row[: self.vocab_size] = toy_logits(running.tokens, self.vocab_size)
        parts = [rows] if self.comm is None else self.comm.allgather(rows[:, part])
        return np.concatenate(parts, axis=1)[:, : self.vocab_size]

    def _sample(self, running: Running, row: np.ndarray, going: list[Running]) -> None:
        request = running.request
        if request.input_token_ids[0] == FAILS and len(running.output) == 2:
            running.error = "Encountered an error in forwardAsync function: out of luck\n1  0x7f frame"
            return
        if request.input_token_ids[0] == NOT_A_NUMBER:
            token, log_prob = self.padded - 1, 0.0
        else:
            ignored = all(other.request.sampling_config.get("min_tokens", 1) == 1 for other in going)
            token, log_prob = choose(row, running, min_length=not ignored, config=self.config)
        if token == request.end_id:
            running.reason = "END_ID"
            return
        running.tokens.append(token)
        running.log_probs.append(log_prob)
        if any(running.tokens[-len(word) :] == list(word) for word in request.stop_words or ()):
            running.reason = "STOP_WORDS"
        elif len(running.output) >= request.max_tokens:
            running.reason = "LENGTH"

    def _respond(self, done: list[Running]) -> None:
        module, responses = self.module, []
        for running in done:
            final = running.reason != "NOT_FINISHED"
            if running.error is not None:
                responses.append(make(module.Response, request_id=running.id, error_msg=running.error))
            elif final or running.sent < len(running.output):
                result = make(
                    module.Result,
                    is_final=final,
                    output_token_ids=[running.output[running.sent :]],
                    log_probs=[list(running.log_probs)] if running.request.return_log_probs else None,
                    finish_reasons=[getattr(module.FinishReason, running.reason, None)],
                )
                running.sent = len(running.output)
                responses.append(make(module.Response, request_id=running.id, result=result))
        self.iteration += 1
        used = sum(-(-len(r.tokens) // 32) for r in self.active)
        cache = make(module.KvCacheStats, max_num_blocks=100, used_num_blocks=used)
        with self.changed:
            self.responses += responses
            stats = {"num_active_requests": len(self.active), "num_queued_requests": len(self.queued)}
            self.stats = [make(module.IterationStats, iter=self.iteration, kv_cache_stats=cache, **stats)]
            self.changed.notify_all()


def _join(ranks: int) -> tuple[Any, int, int]:
    """The job's communicator, this rank and the number of ranks."""
    if ranks == 1:
        return None, 0, 1
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    if comm.size != ranks:
        raise RuntimeError(f"[TensorRT-LLM][ERROR] worldSize {comm.size} is expected to be {ranks}\n1  0x7f frame")
    return comm, comm.rank, comm.size


class _Request:
    """A request as it travels between ranks."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.input_token_ids: list[int] = values["input_token_ids"]
        self.max_tokens: int = values["max_tokens"]
        self.end_id: int = -1 if values.get("end_id") is None else values["end_id"]
        self.stop_words = values.get("stop_words")
        self.bad_words = values.get("bad_words")
        self.sampling_config: dict[str, Any] = values["sampling_config"]
        self.return_log_probs: bool = bool(values["output_config"].get("return_log_probs"))
        assert values.get("streaming"), "the stand-in only streams"


def _plain(request: Any) -> dict[str, Any]:
    values = dict(request.values)
    for name in ("sampling_config", "output_config"):
        given = values[name].values if name in values else {}
        values[name] = {key: value for key, value in given.items() if value is not None}
    return values


class ResponseMethods:
    def has_error(self: Any) -> bool:
        return "error_msg" in self.values


def choose(row: np.ndarray, running: Running, *, min_length: bool, config: Any) -> tuple[int, float]:
    """The next token, and its log-probability among all tokens or, where the config says so, among the top_k."""
    request, p = running.request, running.request.sampling_config
    x = row.astype(np.float64)
    temperature = p.get("temperature", 1.0)
    assert temperature > 0, "temperature penalty param (0.000000) is out of limits (0.000000, inf]"
    if temperature != 1:
        x /= temperature + 1e-6
    seen = np.unique(running.tokens)
    penalty = p.get("repetition_penalty", 1.0)
    x[seen] = np.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
    ignored = min(p.get("prompt_ignore_length", 0), running.prompt)
    counted, counts = np.unique(np.array(running.tokens[ignored:], np.int64), return_counts=True)
    x[counted] -= p.get("presence_penalty", 0.0) + p.get("frequency_penalty", 0.0) * counts
    if min_length and len(running.output) < p.get("min_tokens", 1) and request.end_id >= 0:
        x[request.end_id] = -3e38
    for word in request.bad_words or ():
        if len(word) == 1 or running.tokens[1 - len(word) :] == list(word[:-1]):
            x[word[-1]] = -np.inf
    for start in range(len(running.tokens) + 1 - (size := p.get("no_repeat_ngram_size", 1 << 30))):
        *before, last = running.tokens[start : start + size]
        if before == running.tokens[len(running.tokens) + 1 - size :]:
            x[last] = -np.inf
    x -= x.max()
    x = np.where(np.exp(x) < p.get("min_p", 0.0), -np.inf, x)
    weights = np.exp(x) / np.exp(x).sum()
    kept = keep(weights, p.get("top_k", 0), p.get("top_p", 0.0))
    token = draw(kept, weights[kept], uniform(p.get("seed", 0), len(running.tokens)))
    among = weights[kept].sum() if config.values.get("normalize_log_probs", True) else 1.0
    return token, float(np.log(weights[token] / among))


def keep(weights: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """The tokens to draw from, most likely first where any are left out."""
    if top_k == 0 and top_p == 1:
        return np.arange(len(weights))
    top_k = 1 if top_k == 0 and top_p == 0 else min(top_k or len(weights), 1024)
    kept = np.argsort(-weights, kind="stable")[:top_k]
    shares = np.cumsum(weights[kept]) / weights[kept].sum()
    return kept[: int(np.searchsorted(shares, (top_p or 1.0) - 1e-12)) + 1]


METHODS = {"Executor": ExecutorMethods, "Response": ResponseMethods}
MODULE = load(methods=METHODS)
