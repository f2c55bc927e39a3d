"""The backend class of native TensorRT engines. It imports neither torch nor NVIDIA's packages before it needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trtllm_pt.backends.backend import Backend, BuildOption, BuildReport, RankRuntime
from trtllm_pt.backends.checks import Check
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.backends.tensorrt.api import INSTALL, check_installed
from trtllm_pt.backends.tensorrt.checks import CHECKS
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import SamplingParams


class TensorRTBackend(Backend):
    """A TensorRT plan per rank, of TensorRT's own layers. Our scheduler and sampling run them on NVIDIA GPUs."""

    name = "tensorrt"
    title = "a native TensorRT engine"
    # Raise this number when existing engine directories can no longer be run: when the inputs or profiles change.
    format = 2
    preference = -10  # nobody has run it on a GPU yet
    scheduling_policy = "first come, first served"
    options = (
        BuildOption("gpu", help="GPU architectures of TensorRT-RTX, such as sm89,sm120 (default: all that fit)."),
        BuildOption("builder", ("tensorrt", "tensorrt_rtx"), help="Compiler (default: the one that works here)."),
        BuildOption("workers", int, help="Processes that build ranks at the same time."),
    )
    mpi_hint = "mpi4py and an MPI library"

    def unavailable(self) -> str | None:
        return "native TensorRT plans have not been run on a GPU yet, so only --engine tensorrt chooses them"

    def checks(self) -> Sequence[Check]:
        return CHECKS

    def build(self, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None) -> BuildReport:
        try:
            from trtllm_pt.backends.tensorrt.build import build
        except ModuleNotFoundError as error:
            raise UsageError(f"{self.title} needs {error.name}: {INSTALL}") from None
        return build(self, checkpoint, output, options, progress)

    def check_versions(self, folder: Path, manifest: EngineManifest) -> None:
        if manifest.format != self.format:
            raise self.other_format(folder, manifest)
        check_installed(folder, manifest)

    def problems(self, sampling: SamplingParams) -> Iterator[str]:
        if sampling.context_logits:  # which would need whole rows of logits from the plan's scored chunks
            yield "context_logits (True) is not supported"

    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None, draft_tokens: int
    ) -> RankRuntime | None:
        from trtllm_pt.backends.tensorrt.runtime import open_rank

        return open_rank(folder, manifest, kv_tokens)


BACKEND = TensorRTBackend()
