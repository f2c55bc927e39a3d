"""Detect the format of a model directory."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.checkpoint import llama, tamm
from trtllm_pt.checkpoint.quantized_llama import QuantizedLlamaDir
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.checkpoint.source import ModelDir, Source
from trtllm_pt.errors import UsageError
from trtllm_pt.files.git_lfs import refuse_pointer
from trtllm_pt.model.config import HF_KEYS, read_json


def open_source(folder: Path) -> Source:
    """Open a MODEL_DIR, a CKPT directory, a model of the Llama family, or a tamm model, reading only headers.

    Raises UsageError if the directory is none of these, or if its tensors do not match its config.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no model directory {folder}")
    refuse_pointer(folder / "config.json")
    config = read_json(folder / "config.json")
    if "parallel_track" in config:
        return CheckpointDir(folder)
    try:
        if config.get("model_type") == HF_KEYS["model_type"]:
            if config.get("quantization_config"):
                raise UsageError(
                    "quantization_config: vLLM serves this model, but only the Llama family is read quantised"
                )
            return ModelDir(folder)
        if tamm.TYPE_KEY in config or "num_layers_per_track" in config:
            return tamm.TammDir(folder)
        if config.get("quantization_config"):
            return QuantizedLlamaDir(folder)
        return llama.LlamaDir(folder)
    except UsageError as error:
        raise error if str(folder) in str(error) else UsageError(f"{folder}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Files of other projects can hold any value under any key, and the readers do not check them all.
        raise UsageError(f"{folder / 'config.json'}: a value has the wrong type or size ({error})") from error
