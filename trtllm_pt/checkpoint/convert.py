"""From any model directory that we read to a checkpoint: one file per rank."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.checkpoint.folders import copy_tokenizer, new_folder, refuse_existing, write_json
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.ranks import write_ranks
from trtllm_pt.errors import UsageError


def convert(
    model_dir: str | Path,
    output: str | Path,
    ranks: int = 1,
    dtype: str = "auto",
    quantize: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Writes `model_dir` (our MODEL_DIR, a CKPT of other ranks, Llama family, tamm) as a checkpoint for `ranks` ranks.

    dtype: bfloat16, float16, float32, or "auto", the source's own.
    Returns `output`, which appears complete or not at all.
    Peak memory: twice one track of the largest weight; the source is mapped, not loaded.
    Raises UsageError for anything wrong with the source, the ranks or the output; RunError where the disk fails.
    """
    if quantize is not None:
        raise UsageError(f"quantize ({quantize!r}) is not supported yet: only unquantised checkpoints are written")
    output = Path(output)
    refuse_existing(output)
    source = open_source(Path(model_dir))
    manifest = CheckpointManifest(model=source.config, ranks=ranks, dtype=source.dtype if dtype == "auto" else dtype)
    with new_folder(output) as folder:
        write_ranks(source, manifest, folder, progress=progress)
        if source.tokenizer is not None:
            copy_tokenizer(source.tokenizer, folder / "tokenizer")
        write_json(folder / "config.json", manifest.to_json())
    return output
