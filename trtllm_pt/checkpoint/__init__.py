"""Formats in and out: MODEL_DIR, CKPT, the Llama family, tamm; random initialisation."""

from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.folders import TOKENIZER_FILES, new_folder
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.init import init, initial
from trtllm_pt.checkpoint.load import load_reference, save_model
from trtllm_pt.checkpoint.manifest import DTYPES, CheckpointManifest, rank_file
from trtllm_pt.checkpoint.ranks import open_rank
from trtllm_pt.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorInfo
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.checkpoint.tamm import tamm_to_model_config

__all__ = [
    "DTYPES",
    "TOKENIZER_FILES",
    "CheckpointManifest",
    "SafetensorsFile",
    "SafetensorsWriter",
    "Source",
    "TensorInfo",
    "convert",
    "init",
    "initial",
    "load_reference",
    "new_folder",
    "open_rank",
    "open_source",
    "rank_file",
    "save_model",
    "tamm_to_model_config",
]
