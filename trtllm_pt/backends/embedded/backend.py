"""The backend class of the embedded engine. It imports neither torch nor MPI before an engine is built or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_pt.backends.backend import Backend, BuildOption, BuildReport, RankRuntime
from trtllm_pt.backends.checks import Check
from trtllm_pt.backends.embedded.checks import CHECKS
from trtllm_pt.backends.embedded.shared_ranks import EmbeddedSharedRanks
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.errors import INSTALL_EMBEDDED, MPI_OF_EMBEDDED, UsageError
from trtllm_pt.model import cost
from trtllm_pt.model.config import ModelConfig

if TYPE_CHECKING:
    from trtllm_pt.checkpoint.source import Source


class EmbeddedBackend(Backend):
    """Runs an ahead-of-time compiled graph of our own C++ ops on any x86-64 machine with AVX2; ranks use MPI."""

    name = "embedded"
    title = "the embedded engine"
    # Raise this number when existing engine directories can no longer be run: when the graph's inputs, the ops' schemas
    # or the order of packed weights change. tests/backends/embedded/test_format.py fails on such a change.
    format = 3
    mpi_hint = MPI_OF_EMBEDDED
    keeps_tied_head = False
    drafts = True
    options = (
        BuildOption(
            "gemm", ("int8",), help="Quantise activations too, per token, and multiply integers in the layers."
        ),
    )
    scheduling_policy = "first come, first served"
    shared_ranks = EmbeddedSharedRanks()

    def checks(self) -> Sequence[Check]:
        return CHECKS

    def build(self, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None) -> BuildReport:
        if foreign := [f"--{name}" for name in options.extra if name != "gemm"]:
            raise UsageError(f"{self.title} does not take {', '.join(foreign)}")
        try:
            from trtllm_pt.backends.embedded import engine
        except ModuleNotFoundError as error:
            raise UsageError(f"{self.title} needs {error.name}: `{INSTALL_EMBEDDED}`") from None
        return engine.build(self, checkpoint, output, options, progress)

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Return whether this is an engine that was built before config.json named the backend."""
        return (folder / "model.pt2").exists()

    def read(self, folder: Path, config: Mapping[str, Any], found: EngineManifest) -> EngineManifest:
        capacity = found.options
        BuildOptions(
            max_batch_size=capacity.max_batch_size,
            max_input_len=capacity.max_input_len,
            max_seq_len=capacity.max_seq_len,
            max_num_tokens=capacity.max_num_tokens,
        ).resolved(found.model)
        return found

    def weights(self, folder: Path, manifest: EngineManifest) -> Source:
        if manifest.format != self.format:
            raise self.other_format(folder, manifest)
        from trtllm_pt.backends.embedded.unpack import engine_weights

        return engine_weights(folder, manifest.checkpoint)

    def versions(self) -> Mapping[str, str]:
        return {"torch": version("torch")}

    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None, draft_tokens: int
    ) -> RankRuntime | None:
        from trtllm_pt.backends.embedded.runtime import open_rank

        return open_rank(folder, threads=threads, kv_tokens=kv_tokens, draft_tokens=draft_tokens)

    def collectives(self, model: ModelConfig, ranks: int, dtype: str) -> Sequence[cost.Collective]:
        """Return all-reduces and logits in float32, and the broadcast with which rank 0 announces each step."""
        return cost.collectives(model, ranks, "float32", step_bytes=cost.STEP_PLAN_BYTES)


BACKEND = EmbeddedBackend()
