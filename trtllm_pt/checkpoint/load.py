"""Load a model directory as a reference model and save it again, for training and tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.model_dir import SHARD_BYTES, write_model
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.errors import UsageError
from trtllm_pt.model.tensors import TensorSpec, tensors
from trtllm_pt.network.reference import ReferenceModel


def load_reference(model_dir: Path, dtype: torch.dtype = torch.float32) -> ReferenceModel:
    """Load a directory that `convert` reads as a reference model in `dtype`.

    Raises UsageError if the directory is not a model in a supported format.
    """
    return reference_of(open_source(model_dir), dtype)


def reference_of(source: Source, dtype: torch.dtype) -> ReferenceModel:
    """Load the weights of a source into a reference model in `dtype`."""
    model = ReferenceModel(source.config).to(dtype)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for spec in tensors(source.config):
            whole = parameters[spec.name]
            for track in range(source.config.tracks if spec.per_track else 1):
                part = whole[track] if spec.per_track else whole
                part.copy_(source.read(spec, track, dtype))
    return model


def save_model(model: ReferenceModel, model_dir: Path, dtype: str = "auto", shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model as a MODEL_DIR and return `model_dir`, as `write_model` does.

    dtype: bfloat16, float16, float32, or "auto" for the parameters' dtype. Routers are always float32.
    """
    weights = Parameters(model)
    name = weights.dtype if dtype == "auto" else dtype
    if name not in TORCH_DTYPES:
        raise UsageError(f"dtype ({name!r}) must be one of {', '.join(TORCH_DTYPES)}")
    model_dir.mkdir(parents=True, exist_ok=True)
    write_model(weights, model_dir, name, shard_bytes, progress=False)
    return model_dir


class Parameters:
    """The parameters of a reference model as a `Source`.

    dtype: that of the model's weights where they are written, if it is not that of the parameters.
    """

    def __init__(self, model: ReferenceModel, dtype: str | None = None, tokenizer: Path | None = None) -> None:
        self.config = model.config
        self._parameters = dict(model.named_parameters())
        self.dtype = dtype or str(next(model.parameters()).dtype).removeprefix("torch.")
        self.tokenizer = tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        whole = self._parameters[spec.name].detach()
        return (whole[track] if spec.per_track else whole).to("cpu", dtype)
