"""Convert a model directory to a checkpoint with one file per rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtllm_pt.checkpoint.calibrate import calibrate as measured_ranges
from trtllm_pt.checkpoint.encoded import Encoded, QuantizedSource
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.manifest import GPUS_PER_NODE, CheckpointManifest
from trtllm_pt.checkpoint.ranks import CheckpointDir, write_ranks
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.checkpoint.tokenizer_files import check_tokenizer, copy_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_folder, refuse_existing, write_json
from trtllm_pt.model.quantization import (
    EMBEDDING_QUANT_ALGOS,
    KV_CACHE_QUANT_ALGOS,
    NOT_QUANTIZED,
    QUANT_ALGOS,
    WEIGHT_ONLY,
    Quantization,
)


def convert(
    model_dir: str | Path,
    output: str | Path,
    ranks: int = 1,
    dtype: str = "auto",
    quantize: str | None = None,
    kv_cache: str | None = None,
    calibrate: str | Path | None = None,
    gpus_per_node: int = GPUS_PER_NODE,
    embedding: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Write `model_dir` as a checkpoint for `ranks` ranks.

    model_dir: a MODEL_DIR, a CKPT of any number of ranks, a model of the Llama family, also one that GPTQ, AWQ or
    compressed-tensors has quantised (quantized_llama.py), or a tamm model.
    dtype: bfloat16, float16, float32, or "auto" for the source's dtype.
    quantize: one of QUANT_ALGOS (model/quantization.py), for the layers' matrices. kv_cache: FP8 or INT8. embedding:
    W8A16, for the embedding and the output head. A quantised model keeps its quantisation and its integers; `quantize`
    can only divide its groups into smaller ones, with the same scales.
    calibrate: a file of text, or of token ids as .json or .jsonl, whose first 128 sequences of 512 tokens give the
    ranges that FP8 has to represent (calibrate.py). FP8 matrices require it. Without it an FP8 KV cache has scale 1, as
    in TensorRT-LLM.
    gpus_per_node: for a TensorRT engine on several machines, the GPUs of each.
    progress: whether to show a bar on stderr; None shows it on a terminal.

    Returns `output`, which appears complete or not at all.
    Peak memory: twice the size of one track of the largest weight, or 9 bytes per value of it if it is quantised; the
    source is memory-mapped. Calibration holds the whole model in float32.
    Raises UsageError if the source, an argument or the output is invalid, and RunError if writing fails.
    """
    output = Path(output)
    refuse_existing(output)
    _check_request(quantize, embedding, kv_cache, calibrate)
    source = open_source(Path(model_dir))
    if source.tokenizer is not None:
        check_tokenizer(source.tokenizer, source.config.vocab_size)
    wanted = _quantization(source, dtype, Quantization(quantize, embedding, kv_cache))
    manifest = CheckpointManifest(
        model=source.config,
        ranks=ranks,
        dtype=source.dtype if dtype == "auto" else dtype,
        quant_algo=wanted.matrices,
        kv_cache_quant_algo=wanted.kv_cache,
        embedding_quant_algo=wanted.embedding,
        gpus_per_node=gpus_per_node,
    )
    ranges = None if calibrate is None else measured_ranges(source, Path(calibrate), progress)
    weights = Encoded(source, manifest, ranges)
    with new_folder(output) as folder:
        write_ranks(weights, manifest, folder, progress=progress)
        if source.tokenizer is not None:
            copy_tokenizer(source.tokenizer, folder / "tokenizer")
        write_json(folder / "config.json", manifest.to_json())
    return output


def _check_request(
    quantize: str | None, embedding: str | None, kv_cache: str | None, calibrate: str | Path | None
) -> None:
    """Raise UsageError for an unknown quantisation, or for one without the text that it needs."""
    choices = {
        "quantize": (quantize, QUANT_ALGOS),
        "embedding": (embedding, EMBEDDING_QUANT_ALGOS),
        "kv_cache": (kv_cache, KV_CACHE_QUANT_ALGOS),
    }
    for name, (value, known) in choices.items():
        if value not in (None, *known):
            raise UsageError(f"{name} ({value!r}) must be {' or '.join(known)}")
    if quantize == "FP8" and calibrate is None:
        raise UsageError("quantize ('FP8') needs calibrate: a text from which the ranges of activations are measured")
    if calibrate is not None and "FP8" not in (quantize, kv_cache):
        raise UsageError(f"calibrate ({str(calibrate)!r}) applies only to FP8: set quantize or kv_cache to FP8")


def _quantization(source: Source, dtype: str, wanted: Quantization) -> Quantization:
    """Return the quantisation of the checkpoint, which keeps what is quantised in the source.

    Raises UsageError if the source is quantised, and its matrices, KV cache or dtype are wanted otherwise.
    """
    if not isinstance(source, QuantizedSource) or (own := source.quantization) == NOT_QUANTIZED:
        return wanted
    kv_cache = None if own.kv_cache is None and wanted.kv_cache == "INT8" else wanted.kv_cache
    regroups = _divides(own.matrices, wanted.matrices)
    taken = {
        "quantize": None if regroups else wanted.matrices,
        "kv_cache": kv_cache,
        "embedding": own.embedding and wanted.embedding,
    }
    for name, value in taken.items():
        if value is not None:
            raise UsageError(
                f"{name} ({value!r}) cannot be applied: the model is already {own}; "
                "convert the model from which it was made"
            )
    if dtype not in ("auto", source.dtype) and isinstance(source, CheckpointDir):
        raise UsageError(f"dtype ({dtype!r}) must be 'auto' or {source.dtype!r}, as the checkpoint is already {own}")
    matrices = wanted.matrices if regroups else own.matrices
    return Quantization(matrices, own.embedding or wanted.embedding, own.kv_cache or wanted.kv_cache)


def _divides(own: str | None, wanted: str | None) -> bool:
    """Return whether a quantisation is another one with its groups divided."""
    if own not in WEIGHT_ONLY or wanted not in WEIGHT_ONLY:
        return False
    whole, part = WEIGHT_ONLY[own], WEIGHT_ONLY[wanted]
    if whole.group is None or part.group is None:
        return False
    return part == replace(whole, group=part.group) and whole.group % part.group == 0
