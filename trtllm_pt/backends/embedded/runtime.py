"""The runtime of the embedded engine on rank 0."""

from __future__ import annotations

from pathlib import Path

import msgspec

from trtllm_pt.backends.embedded.paged_scheduler import PagedScheduler
from trtllm_pt.backends.embedded.scores import score
from trtllm_pt.backends.embedded.session import Session, open_session
from trtllm_pt.backends.embedded.step_plan import StepPlan
from trtllm_pt.batching.grammars import Grammars
from trtllm_pt.batching.runtime import BatchingRuntime
from trtllm_pt.requests.messages import Stats

_PREFILL_CHUNK = 256  # prompt tokens in a step with decoding requests, so that their next token does not wait long


class EmbeddedRuntime(BatchingRuntime[StepPlan]):
    """The runtime of a session, with what the op library counts."""

    def __init__(self, session: Session, draft_tokens: int = 0) -> None:
        options = session.manifest.options
        scheduler = PagedScheduler(
            session.manifest.limits,
            max_batch_size=options.max_batch_size,
            max_num_tokens=options.max_num_tokens,
            num_pages=session.engine.pages,
            chunk=min(_PREFILL_CHUNK, options.max_num_tokens),
            draft_tokens=draft_tokens,
        )
        grammars = Grammars(session.engine.folder / "tokenizer", session.vocab_size)
        super().__init__(session, scheduler, score, grammars)
        self.session = session

    def stats(self) -> Stats:
        reduces = self.session.reduces
        return msgspec.structs.replace(
            super().stats(),
            sync_points_seen=self.session.sync_points_seen,
            all_reduce_seconds=reduces.seconds,
            all_reduce_bytes=reduces.bytes,
            peak_memory_bytes=self.session.peak_memory_bytes(),
        )


def open_rank(folder: Path, *, threads: int | None, kv_tokens: int | None, draft_tokens: int) -> EmbeddedRuntime | None:
    """Join the ranks of an engine and load this one, as described at Backend.open_rank."""
    session = open_session(folder, threads=threads, kv_tokens=kv_tokens)
    if session.world.rank:
        session.follow()
        return None
    return EmbeddedRuntime(session, draft_tokens)
