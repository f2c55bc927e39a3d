"""This process as one rank of an engine directory, whichever engine that is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.versions import check_versions
from trtllm_pt.requests.messages import Runtime


class RankRuntime(Runtime, Protocol):
    """The runtime protocol where the engine runs, on rank 0."""

    pids: list[int]  # of all ranks

    @property
    def busy(self) -> bool:
        """Whether requests are in flight or messages wait for `poll`."""
        ...

    def release(self) -> None:
        """At the end of a script that did not close, or went on after a failure: the other ranks still wait."""


def open_rank(
    folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None
) -> RankRuntime | None:
    """Join the ranks of an engine directory and load this one.

    Rank 0: its runtime. The others work for it until it closes and then return None. threads: per rank; None: the
    machine's cores divided among the ranks. kv_tokens: tokens that the KV cache has room for; None: what fits.
    Raises UsageError for an engine that cannot run here.
    """
    check_versions(folder, manifest)
    if manifest.kind == "tensorrt_llm":
        from trtllm_pt.backends.tensorrt_llm import runtime as tensorrt_llm

        return tensorrt_llm.open_rank(folder, manifest, threads=threads, kv_tokens=kv_tokens)
    from trtllm_pt.backends.embedded import runtime as embedded

    return embedded.open_rank(folder, threads=threads, kv_tokens=kv_tokens)
