"""The runtime of an engine on rank 0. It runs steps only while it is polled; only grammars are compiled in a thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trtllm_pt.batching.grammars import Grammars
from trtllm_pt.batching.rank_messages import RankMessages
from trtllm_pt.batching.sampling import Score, sample
from trtllm_pt.batching.scheduler import Scheduler
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import CLOSED, FinishReason, Request, Stats, Tokens, TokenScore

Plan = TypeVar("Plan")
Run = TypeVar("Run", contravariant=True)


class Session(Protocol[Run]):
    """Rank 0 of a running engine, which runs each plan on all ranks."""

    @property
    def world(self) -> RankMessages: ...

    @property
    def pids(self) -> list[int]:
        """The process id of each rank."""
        ...

    @property
    def hosts(self) -> list[str]:
        """The name of the machine of each rank."""
        ...

    @property
    def scores(self) -> Sequence[TokenScore]:
        """The log-probs of the scored rows of the last plan."""
        ...

    def run(self, plan: Run) -> npt.NDArray[np.float32]:
        """Run one step on all ranks and return logits [R, V], which are valid until the next call."""
        ...

    def close(self) -> None:
        """Make the other ranks stop."""


class BatchingRuntime(Generic[Plan]):
    """Implements requests.messages.Runtime. Rank 0 makes all decisions here, and the other ranks run its plans."""

    def __init__(self, session: Session[Plan], scheduler: Scheduler[Plan], score: Score, grammars: Grammars) -> None:
        self.pids, self.hosts = session.pids, session.hosts
        self.broken = False  # set when a step failed, in which the other ranks may wait forever
        self._session, self._scheduler, self._score, self._grammars = session, scheduler, score, grammars
        self._closed = False
        self._done: list[Tokens] = []  # messages of requests that finished between steps

    @property
    def busy(self) -> bool:
        return bool(self._done) or not self._scheduler.idle or bool(self._grammars)

    def submit(self, request: Request) -> None:
        self._check_open()
        self._scheduler.limits.check_queued(request, self._grammars)
        if (guide_type := request.sampling.guide_type) is None:
            self._scheduler.add(request)
            return
        self._scheduler.check_request(request)
        self._grammars.hold(request, guide_type)

    def cancel(self, request_id: int) -> None:
        if request_id in self._grammars:
            self._grammars.drop(request_id)
            self._done.append(Tokens(id=request_id, finish_reason="cancelled"))
        elif (message := self._scheduler.cancel(request_id)) is not None:
            self._done.append(message)

    @torch.no_grad()  # here, because the owner's process may also train
    def poll(self, timeout: float) -> list[Tokens]:
        """Run at least one step, and more until there are tokens, no request is left, or `timeout` seconds are over."""
        self._check_open()
        deadline = time.monotonic() + timeout
        while not (messages := self._step()) and self.busy and time.monotonic() < deadline:
            if self._scheduler.idle:
                self._grammars.wait(deadline - time.monotonic())
        return messages

    def _step(self) -> list[Tokens]:
        if self._grammars:
            self._take_grammars()
        messages = self._done
        if messages:
            self._done = []
        plan = self._scheduler.schedule()
        if plan is None:
            return messages
        try:
            logits = self._session.run(plan)
        except BaseException:
            self._closed = self.broken = True  # the ranks may be at different places in the step
            raise
        scheduler = self._scheduler
        sampled = sample(scheduler.rows(logits), scheduler.wanted, self._score)
        messages = messages + scheduler.finish_step(sampled, self._session.scores)
        while scheduler.agreed:
            messages += scheduler.go_on(sample(scheduler.rows(logits), scheduler.agreed, self._score))
        return messages

    def _take_grammars(self) -> None:
        """Queue the requests whose grammars are compiled, and refuse those with guides that are wrong."""
        for request, found in self._grammars.ready():
            if isinstance(found, BaseException):
                reason: FinishReason = "invalid" if isinstance(found, UsageError) else "error"
                self._done.append(Tokens(id=request.id, finish_reason=reason, error=str(found)))
            else:
                self._scheduler.add(request, found)

    def stats(self) -> Stats:
        scheduler, world = self._scheduler, self._session.world
        speculation = scheduler.speculation
        return Stats(
            steps=scheduler.steps,
            active_requests=len(scheduler.running),
            waiting_requests=len(scheduler.waiting) + len(self._grammars),
            preemptions=scheduler.preemptions,
            kv_pages_total=scheduler.pages_total,
            kv_pages_used=scheduler.pages_held,
            prompt_tokens=scheduler.prompt_tokens,
            output_tokens=scheduler.output_tokens,
            sync_points_seen=None,
            hops_per_step=world.hops / scheduler.steps if scheduler.steps else 0.0,
            kv_page_tokens=scheduler.page_tokens,
            reused_tokens=scheduler.reused_tokens,
            drafted_tokens=speculation.drafted if speculation else None,
            accepted_tokens=speculation.accepted if speculation else None,
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._grammars.close()
            self._session.close()

    def release(self) -> None:
        self.close()
        if self.broken:
            self._session.world.abort()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(CLOSED)
