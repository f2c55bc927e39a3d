"""The runtime of native TensorRT engines on rank 0."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.tensorrt.profiles import PREFILL, profiles_of
from trtllm_pt.backends.tensorrt.session import Session, open_session
from trtllm_pt.backends.tensorrt.slot_plan import SlotPlan
from trtllm_pt.backends.tensorrt.slot_scheduler import SlotScheduler
from trtllm_pt.batching.grammars import Grammars
from trtllm_pt.batching.runtime import BatchingRuntime
from trtllm_pt.batching.sampling import score_rows

_CHUNK_BESIDE = 256  # prompt tokens between two decode steps, so that their next token does not wait long


class TensorRTRuntime(BatchingRuntime[SlotPlan]):
    """The runtime of a session with the engine in `folder`."""

    def __init__(self, session: Session, folder: Path) -> None:
        manifest = session.engine.manifest
        prefill = profiles_of(manifest.options)[PREFILL]
        chunk, rows = prefill.each[2], prefill.rows[2]
        scheduler = SlotScheduler(
            manifest.limits,
            slots=session.engine.slots,
            slot_size=manifest.max_seq_len,
            chunk=chunk,
            chunk_beside=min(_CHUNK_BESIDE, chunk),
            scored_chunk=rows,
        )
        grammars = Grammars(folder / "tokenizer", manifest.model.vocab_size)
        super().__init__(session, scheduler, score_rows, grammars)
        self.session = session


def open_rank(folder: Path, manifest: EngineManifest, kv_tokens: int | None) -> TensorRTRuntime | None:
    """Join the ranks of an engine and load this one, as described at Backend.open_rank."""
    session = open_session(folder, manifest, kv_tokens)
    if session.world.rank:
        session.follow()
        return None
    return TensorRTRuntime(session, folder)
