"""From any model directory that we read to a checkpoint: one file per rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtllm_pt.checkpoint.encoded import Encoded, StoredWeights
from trtllm_pt.checkpoint.folders import copy_tokenizer, new_folder, refuse_existing, write_json
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.ranks import CheckpointDir, write_ranks
from trtllm_pt.errors import UsageError
from trtllm_pt.quantization import WEIGHT_ONLY


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
    quantize: W8A16 or W4A16, the layers' matrices in 8 or 4 bits. A CKPT that is quantised stays so, bit for bit.
    Returns `output`, which appears complete or not at all.
    Peak memory: twice one track of the largest weight, or 9 bytes for each of its values where they are quantised; the
    source is mapped, not loaded.
    Raises UsageError for anything wrong with the source, the ranks or the output; RunError where the disk fails.
    """
    output = Path(output)
    refuse_existing(output)
    if quantize not in (None, *WEIGHT_ONLY):
        raise UsageError(f"quantize ({quantize!r}) must be one of {', '.join(WEIGHT_ONLY)}")
    source = open_source(Path(model_dir))
    weights: StoredWeights
    if isinstance(source, CheckpointDir) and source.manifest.quantized:
        weights, manifest = source, _divided(source, ranks, dtype, quantize)
    else:
        manifest = CheckpointManifest(
            model=source.config,
            ranks=ranks,
            dtype=source.dtype if dtype == "auto" else dtype,
            quant_algo=quantize,
        )
        weights = Encoded(source, manifest)
    with new_folder(output) as folder:
        write_ranks(weights, manifest, folder, progress=progress)
        if source.tokenizer is not None:
            copy_tokenizer(source.tokenizer, folder / "tokenizer")
        write_json(folder / "config.json", manifest.to_json())
    return output


def _divided(source: CheckpointDir, ranks: int, dtype: str, quantize: str | None) -> CheckpointManifest:
    """A quantised checkpoint's own manifest, for another number of ranks: nothing else of it can be changed."""
    own = source.manifest
    if quantize is not None:
        raise UsageError(
            f"quantize ({quantize!r}): the checkpoint is {own.quantized} already; convert what it was made of"
        )
    if dtype not in ("auto", own.dtype):
        raise UsageError(f"dtype ({dtype!r}): the checkpoint is quantised with scales in {own.dtype}; leave it so")
    return replace(own, ranks=ranks)
