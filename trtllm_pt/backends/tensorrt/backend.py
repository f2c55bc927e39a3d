"""The backend class of native TensorRT engines. It imports neither torch nor NVIDIA's packages before it needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtllm_pt.backends.backend import Backend, BuildOption, BuildReport, RankRuntime
from trtllm_pt.backends.checks import Check
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.backends.tensorrt.api import INSTALL
from trtllm_pt.backends.tensorrt.checks import CHECKS
from trtllm_pt.errors import UsageError


class TensorRTBackend(Backend):
    """A TensorRT plan per rank, of TensorRT's own layers. This version builds and inspects plans, and runs none."""

    name = "tensorrt"
    title = "a native TensorRT engine"
    preference = -10  # it runs nowhere yet
    options = (
        BuildOption("gpu", help="GPU architectures of TensorRT-RTX, such as sm89,sm120 (default: all that fit)."),
        BuildOption("builder", ("tensorrt", "tensorrt_rtx"), help="Compiler (default: the one that works here)."),
        BuildOption("workers", int, help="Processes that build ranks at the same time."),
    )
    mpi_hint = "mpi4py and an MPI library"

    def unavailable(self) -> str | None:
        return "native TensorRT plans can be built and inspected, but not run yet"

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

    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None
    ) -> RankRuntime | None:
        raise UsageError(
            f"{folder} holds TensorRT plans, which this version of trtllm-pt cannot run: `trtllm-pt inspect {folder}` "
            "shows them, and --engine embedded builds the same checkpoint for this machine"
        )


BACKEND = TensorRTBackend()
