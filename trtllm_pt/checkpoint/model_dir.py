"""Write our own model format, MODEL_DIR, which `convert` and Hugging Face's transformers read.

transformers runs the file modeling_parallel_track.py, of which every MODEL_DIR has a copy. It needs no other file of
this package.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tqdm import tqdm

from trtllm_pt.checkpoint.dtypes import TORCH_DTYPES
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.files.atomic import write_json
from trtllm_pt.files.safetensors import SafetensorsWriter, TensorInfo
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.quantization import stored
from trtllm_pt.model.tensors import TensorSpec, tensors

MODELING = Path(__file__).with_name("modeling_parallel_track.py")
SHARD_BYTES = 5 << 30


def write_model(
    source: Source, folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES, progress: bool | None = None
) -> None:
    """Write the weights and config of a source into `folder`, one track of one weight at a time.

    Weights and config that exist there are replaced; other files, such as the tokenizer's, stay.
    dtype: of all weights except routers, which are float32.
    shard_bytes: the size from which the weights are written to several files with an index.
    progress: whether to show a bar on stderr; None shows it on a terminal.
    """
    config = source.config
    specs = {spec.name: spec for spec in tensors(config)}
    infos = {
        spec.name: TensorInfo(TORCH_DTYPES[stored(spec, dtype)[0].dtype], spec.global_shape(config))
        for spec in specs.values()
    }
    shards = _shards(list(specs.values()), infos, shard_bytes)
    total = sum(info.nbytes for info in infos.values())
    with tqdm(
        total=total, desc="weights", unit="B", unit_scale=True, disable=None if progress is None else not progress
    ) as bar:
        for file, members in shards.items():
            with SafetensorsWriter(folder / file, {name: infos[name] for name in members}, {"format": "pt"}) as writer:
                for name in members:
                    for track in range(config.tracks if specs[name].per_track else 1):
                        part = source.read(specs[name], track, infos[name].dtype)
                        writer.append(name, part)
                        bar.update(part.nbytes)
    _write_index(folder, shards, total)
    write_config(config, folder, dtype)


def write_config(config: ModelConfig, folder: Path, dtype: str) -> None:
    """Write a config.json that both this package and transformers read, and the modeling file that it names."""
    shutil.copyfile(MODELING, folder / MODELING.name)
    classes = {"AutoConfig": "ParallelTrackConfig", "AutoModelForCausalLM": "ParallelTrackForCausalLM"}
    auto_map = {name: f"{MODELING.stem}.{value}" for name, value in classes.items()}
    write_json(folder / "config.json", config.to_json() | {"dtype": dtype, "auto_map": auto_map})


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


def _write_index(folder: Path, shards: dict[str, list[str]], total: int) -> None:
    """Write the index, and remove shards that an earlier model left."""
    index = folder / "model.safetensors.index.json"
    if len(shards) > 1:
        weight_map = {name: file for file, members in shards.items() for name in members}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    else:
        index.unlink(missing_ok=True)
    for path in folder.glob("model*.safetensors"):
        if path.name not in shards:
            path.unlink()
