"""Write a model directory from a checkpoint, an engine directory or another model directory."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.backends.registry import read_engine
from trtllm_pt.checkpoint.encoded import QuantizedSource
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.model_dir import write_model
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.checkpoint.tokenizer_files import check_tokenizer, copy_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_folder, refuse_existing
from trtllm_pt.model.config import read_json
from trtllm_pt.model.quantization import NOT_QUANTIZED, Quantization


def export(source: str | Path, output: str | Path, progress: bool | None = None) -> Path:
    """Write `source` as a MODEL_DIR, which `convert` and Hugging Face's transformers read.

    source: a checkpoint of any number of ranks, an engine directory of the embedded engine, or anything that `convert`
    reads. Its weights stay as they are, bit for bit.
    progress: whether to show a bar on stderr; None shows it on a terminal.

    Returns `output`, which appears complete or not at all.
    Peak memory: one track of the largest weight; the source is memory-mapped.
    Raises UsageError if the source or the output is invalid, or if the source's weights are quantised, and RunError if
    writing fails.
    """
    output = Path(output)
    refuse_existing(output)
    weights = _open(Path(source))
    return write(weights, output, progress)


def write(weights: Source, output: Path, progress: bool | None = None) -> Path:
    """Write a source as a MODEL_DIR, as `export` does."""
    if weights.tokenizer is not None:
        check_tokenizer(weights.tokenizer, weights.config.vocab_size)
    with new_folder(output) as folder:
        write_model(weights, folder, weights.dtype, progress=progress)
        if weights.tokenizer is not None:
            copy_tokenizer(weights.tokenizer, folder)
    return output


def _open(folder: Path) -> Source:
    if (folder / "config.json").is_file() and "pretrained_config" in read_json(folder / "config.json"):
        engine = read_engine(folder)
        _refuse_quantized(folder, engine.checkpoint.quantization)
        return engine.backend.weights(folder, engine)
    source = open_source(folder)
    if isinstance(source, QuantizedSource):
        _refuse_quantized(folder, source.quantization)
    return source


def _refuse_quantized(folder: Path, quantization: Quantization) -> None:
    if quantization != NOT_QUANTIZED:
        raise UsageError(
            f"{folder} is {quantization}, from which the weights before quantisation cannot be computed; "
            "export the model from which it was made"
        )
