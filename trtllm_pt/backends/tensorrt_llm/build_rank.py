"""Build ranks of a TensorRT engine in this process with TensorRT-LLM's builder, as `trtllm-build` does.

Run as a program, this module is a worker of `trtllm-pt build --workers`: its argument is a Job as JSON, and it prints a
line of JSON for each finished rank.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.tensorrt_llm.options import build_fields, gpus_per_node, plugin_fields, strategy_of
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.model.schedule import sync_points

TIMING_CACHE = "model.cache"
_MESSAGES = ("AllReduce", "AllGather", "ReduceScatter", "Send", "Recv", "GemmAllReduce")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The ranks of a checkpoint that one process builds into `folder`, one after the other."""

    checkpoint: Path
    folder: Path
    options: BuildOptions
    ranks: Sequence[int]
    device: int

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "ranks": list(self.ranks)}, default=str)  # str converts the paths

    @classmethod
    def from_json(cls, text: str) -> Job:
        data = json.loads(text)
        paths = {name: Path(data[name]) for name in ("checkpoint", "folder")}
        return cls(**{**data, **paths, "options": BuildOptions(**data["options"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRank:
    """The result of building one rank."""

    rank: int
    seconds: float
    bytes: int  # size of the engine file, 0 after a dry run
    plugins: Mapping[str, int]  # plugin -> the number of its layers in the network


def build_ranks(job: Job, report: Callable[[BuiltRank], None]) -> None:
    """Build the ranks of a job and call `report` after each of them.

    Raises UsageError for a value that TensorRT-LLM refuses, and RunError, naming the rank, for any other failure.
    """
    manifest = CheckpointManifest.from_dir(job.checkpoint)
    build_config = _build_config(job, manifest)
    torch.cuda.set_device(job.device)
    for rank in job.ranks:
        began = time.monotonic()
        try:
            plugins = _build_rank(job, manifest, build_config, rank)
        except TrtllmPtError:
            raise
        except Exception as error:  # TensorRT-LLM raises exceptions of many types
            reason = " ".join(str(error).split())
            raise RunError(f"building rank {rank} failed: {type(error).__name__}: {reason}") from error
        gc.collect()  # frees the network, which has reference cycles and holds the weights
        file = job.folder / f"rank{rank}.engine"
        size = file.stat().st_size if file.exists() else 0  # none after a dry run
        report(BuiltRank(rank=rank, seconds=time.monotonic() - began, bytes=size, plugins=plugins))


def _build_rank(job: Job, manifest: CheckpointManifest, build_config: Any, rank: int) -> Mapping[str, int]:
    """Build one rank, and return the number of layers of each plugin in its network."""
    from tensorrt_llm.builder import build
    from tensorrt_llm.logger import logger

    from trtllm_pt.backends.tensorrt_llm.network import ParallelTrackConfig, ParallelTrackForCausalLM

    plugins: Counter[str] = Counter()

    class Counted(ParallelTrackForCausalLM):
        """A model whose messages are compared with the schedule once the network is recorded, before the slow build."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            plugins.update(recorded_plugins())
            check_messages(plugins, manifest, rank)
            return outputs

    logger.set_level(job.options.extra.get("log_level", "warning"))
    config = ParallelTrackConfig.from_checkpoint(str(job.checkpoint))
    config.set_rank(rank)
    config.mapping.gpus_per_node = gpus_per_node(job.options, manifest)
    config.all_reduce_strategy = strategy_of(job.options)
    config.logits_dtype = job.options.extra.get("logits_dtype", config.logits_dtype)
    model = Counted.from_checkpoint(str(job.checkpoint), config=config)
    build(model, build_config).save(str(job.folder))
    return dict(plugins)


def _build_config(job: Job, manifest: CheckpointManifest) -> Any:
    """Return TensorRT-LLM's BuildConfig. Its timing cache is written to the engine's folder."""
    from pydantic import ValidationError
    from tensorrt_llm.builder import BuildConfig
    from tensorrt_llm.plugin import PluginConfig

    fields = {"output_timing_cache": str(job.folder / TIMING_CACHE), **build_fields(job.options, manifest)}
    try:
        plugins = PluginConfig(**plugin_fields(job.options))
        plugins.validate()
        return BuildConfig(**fields, plugin_config=plugins, strongly_typed=True)
    except ValidationError as error:
        first = error.errors()[0]
        name, value = first["loc"][0] if first["loc"] else "options", first.get("input")
        raise UsageError(f"--{name} ({value}): {first['msg']}") from None
    except NotImplementedError as error:
        raise UsageError(str(error)) from None


def recorded_plugins() -> Counter[str]:
    """Return the number of layers of each plugin in the network that is being recorded."""
    from tensorrt_llm._common import default_net

    layers = (layer for layer in default_net().get_layers() if layer.type.name == "PLUGIN_V2")
    return Counter(layer.as_layer().plugin.plugin_type for layer in layers)


def check_messages(recorded: Mapping[str, int], manifest: CheckpointManifest, rank: int) -> None:
    """Raise RunError if a recorded network sends messages other than its schedule's all-reduces and one gather of
    logits."""
    wanted = {"AllReduce": sync_points(manifest.schedule), "AllGather": 1} if manifest.ranks > 1 else {}
    found = {name: recorded[name] for name in _MESSAGES if recorded.get(name)}
    if found != wanted:
        raise RunError(f"the network of rank {rank} sends {_counted(found)}, but its schedule has {_counted(wanted)}")


def _counted(messages: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in messages.items()) or "nothing"


def main() -> None:
    """Run the worker. Only its reports go to stdout, which the parent process reads; output of libraries goes to
    stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def report(built: BuiltRank) -> None:
        out.write(json.dumps(asdict(built)) + "\n")

    try:
        build_ranks(Job.from_json(sys.argv[1]), report)
    except TrtllmPtError as error:
        out.write(json.dumps({"error": str(error), "usage": isinstance(error, UsageError)}) + "\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
