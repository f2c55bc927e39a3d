"""Load a model directory as a reference model and save it again, for training and tests."""

from __future__ import annotations

from pathlib import Path

import torch

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import write_json
from trtllm_pt.files.safetensors import SafetensorsWriter, TensorInfo
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.quantization import stored
from trtllm_pt.model.tensors import TensorSpec, tensors
from trtllm_pt.network.reference import ReferenceModel

_SHARD_BYTES = 5 << 30


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


def save_model(model: ReferenceModel, model_dir: Path, dtype: str = "auto", shard_bytes: int = _SHARD_BYTES) -> Path:
    """Write a model as a MODEL_DIR and return `model_dir`.

    Weights and config that exist there are replaced; other files, such as the tokenizer's, stay.
    dtype: bfloat16, float16, float32, or "auto" for the parameters' dtype. Routers are always float32.
    shard_bytes: the size from which the weights are written to several files with an index.
    """
    specs = list(tensors(model.config))
    parameters = dict(model.named_parameters())
    own = str(parameters[specs[0].name].dtype).removeprefix("torch.")
    name = own if dtype == "auto" else dtype
    if name not in TORCH_DTYPES:
        raise UsageError(f"dtype ({name!r}) must be one of {', '.join(TORCH_DTYPES)}")
    infos = {
        spec.name: TensorInfo(TORCH_DTYPES[stored(spec, name)[0].dtype], spec.global_shape(model.config))
        for spec in specs
    }
    model_dir.mkdir(parents=True, exist_ok=True)
    shards = _shards(specs, infos, shard_bytes)
    for file, members in shards.items():
        with SafetensorsWriter(model_dir / file, {name: infos[name] for name in members}, {"format": "pt"}) as writer:
            for member in members:
                writer.append(member, parameters[member].detach().to("cpu", infos[member].dtype))
    _finish(model_dir, model.config, shards, sum(info.nbytes for info in infos.values()))
    return model_dir


def _shards(specs: list[TensorSpec], infos: dict[str, TensorInfo], limit: int) -> dict[str, list[str]]:
    """Return the weights of each file. A file has at most `limit` bytes, unless a single weight is larger."""
    groups: list[list[str]] = [[]]
    room = limit
    for spec in specs:
        size = infos[spec.name].nbytes
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(spec.name)
        room -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def _finish(model_dir: Path, config: ModelConfig, shards: dict[str, list[str]], total: int) -> None:
    """Write the index and the config, and remove shards that an earlier model left."""
    index = model_dir / "model.safetensors.index.json"
    if len(shards) > 1:
        weight_map = {name: file for file, members in shards.items() for name in members}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    for path in model_dir.glob("model*.safetensors"):
        if path.name not in shards:
            path.unlink()
    write_json(model_dir / "config.json", config.to_json())
