"""Checkpoint to engines, by whichever engine is asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from trtllm_pt.backends.manifest import BuildOptions, Kind
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import INSTALL_EMBEDDED, UsageError

ENGINES = ("auto", "embedded", "tensorrt_llm")
# Options of trtllm-build that both engines honour.
COMMON = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did."""

    path: Path
    engine: Kind
    ranks: int
    seconds: float
    cache: str | None = None  # hit or miss: whether the compiled graph was at hand; None: the engine has no such cache


def choose(engine: str) -> tuple[Kind, str | None]:
    """The engine that `engine` stands for here and, where that is "auto", why.

    Raises UsageError for an unknown one. Imports torch where TensorRT-LLM is installed.
    """
    if engine == "embedded":
        return "embedded", None
    if engine == "tensorrt_llm":
        return "tensorrt_llm", None
    if engine != "auto":
        raise UsageError(f"engine ({engine!r}) must be one of {', '.join(map(repr, ENGINES))}")
    if importlib.util.find_spec("tensorrt_llm") is None:
        return "embedded", "TensorRT-LLM is not installed"
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        return "embedded", "TensorRT-LLM is installed, but no GPU is visible"
    return "tensorrt_llm", f"TensorRT-LLM is installed, and {gpus} GPU{'s are' if gpus > 1 else ' is'} visible"


def build(
    checkpoint: str | Path,
    output: str | Path,
    engine: str = "auto",
    options: BuildOptions | None = None,
    progress: bool | None = None,
) -> BuildReport:
    """Builds an engine per rank of the directory `checkpoint` into the new directory `output`.

    engine: "embedded", "tensorrt_llm", or "auto", the latter where it is installed and a GPU is visible.
    progress: a bar on stderr; None: where that is a terminal. Raises UsageError for what cannot be built, before
    anything slow; then, and after any failure, nothing stands at `output`.
    """
    kind, _ = choose(engine)
    options = options or BuildOptions()
    if kind == "tensorrt_llm":
        from trtllm_pt.backends.tensorrt_llm import build as tensorrt_llm

        return tensorrt_llm.build(Path(checkpoint), Path(output), options, progress)
    if options.tensorrt_llm:
        foreign = ", ".join(f"--{name}" for name in options.tensorrt_llm)
        common = ", ".join(f"--{name}" for name in COMMON)
        raise UsageError(f"the embedded engine cannot honour {foreign}; it takes {common}")
    try:
        from trtllm_pt.backends.embedded import engine as embedded
    except ModuleNotFoundError as error:
        raise UsageError(f"the embedded engine needs {error.name}: `{INSTALL_EMBEDDED}`") from None
    return embedded.build(Path(checkpoint), Path(output), options, progress)


def check_files(checkpoint: Path, manifest: CheckpointManifest) -> None:
    """Raises UsageError, naming it, for a rank's file or tensor that is missing, misshapen or of another dtype."""
    from trtllm_pt.checkpoint.ranks import open_rank

    missing = manifest.missing_ranks(checkpoint)
    if missing:
        raise UsageError(f"{checkpoint} is incomplete: it lacks rank{missing[0]}.safetensors")
    for rank in range(manifest.ranks):
        open_rank(checkpoint, manifest, rank)
