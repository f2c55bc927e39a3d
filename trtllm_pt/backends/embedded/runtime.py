"""The runtime of the embedded engine on rank 0. It runs steps only while it is polled, without threads or locks."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.scheduler import Scheduler
from trtllm_pt.backends.embedded.session import Session, open_session
from trtllm_pt.batching.sampling import sample
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import CLOSED, Request, Stats, Tokens

_PREFILL_CHUNK = 256  # prompt tokens in a step with decoding requests, so that their next token does not wait long


class EmbeddedRuntime:
    """Implements requests.messages.Runtime. Rank 0 makes all decisions here, and the other ranks run its plans."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pids = session.pids
        options = session.manifest.options
        self._scheduler = Scheduler(
            session.manifest.limits,
            max_batch_size=options.max_batch_size,
            max_num_tokens=options.max_num_tokens,
            num_pages=session.engine.pages,
            chunk=min(_PREFILL_CHUNK, options.max_num_tokens),
        )
        self._closed = False
        self.broken = False  # set when a step failed, in which the other ranks may wait forever
        self._done: list[Tokens] = []  # messages of requests that finished between steps

    @property
    def busy(self) -> bool:
        return bool(self._done) or not self._scheduler.idle

    def submit(self, request: Request) -> None:
        self._check_open()
        self._scheduler.add(request)

    def cancel(self, request_id: int) -> None:
        if (message := self._scheduler.cancel(request_id)) is not None:
            self._done.append(message)

    @torch.no_grad()  # here, because the owner's process may also train
    def poll(self, timeout: float) -> list[Tokens]:
        """Run at least one step, and more until there are tokens, no request is left, or `timeout` seconds are over."""
        if self._closed:
            raise UsageError(CLOSED)
        deadline = time.monotonic() + timeout
        while not (messages := self._step()) and self.busy and time.monotonic() < deadline:
            pass
        return messages

    def _step(self) -> list[Tokens]:
        messages = self._done
        if messages:
            self._done = []
        plan = self._scheduler.schedule()
        if plan is None:
            return messages
        try:
            logits = self.session.run(plan)
        except BaseException:
            self._closed = self.broken = True  # the ranks may be at different places in the step
            raise
        sampled = sample(logits, self._scheduler.wanted)
        return messages + self._scheduler.finish_step(sampled, self.session.scores)

    def stats(self) -> Stats:
        scheduler, world = self._scheduler, self.session.world
        return Stats(
            steps=scheduler.steps,
            active_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting),
            preemptions=scheduler.preemptions,
            kv_pages_total=scheduler.pages.total,
            kv_pages_used=scheduler.pages.held,
            prompt_tokens=scheduler.prompt_tokens,
            output_tokens=scheduler.output_tokens,
            sync_points_seen=self.session.sync_points_seen,
            hops_per_step=world.hops / scheduler.steps if scheduler.steps else 0.0,
            all_reduce_seconds=self.session.reduces.seconds,
            all_reduce_bytes=self.session.reduces.bytes,
            peak_memory_bytes=self.session.peak_memory_bytes(),
            kv_page_tokens=PAGE,
            reused_tokens=scheduler.reused_tokens,
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.session.close()

    def release(self) -> None:
        self.close()
        if self.broken:
            self.session.world.abort()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(CLOSED)


def open_rank(folder: Path, *, threads: int | None, kv_tokens: int | None) -> EmbeddedRuntime | None:
    """Join the ranks of an engine and load this one, as described at Backend.open_rank."""
    session = open_session(folder, threads=threads, kv_tokens=kv_tokens)
    if session.world.rank:
        session.follow()
        return None
    return EmbeddedRuntime(session)
