"""Define the networks of a checkpoint with an installed TensorRT, for execution by the interpreter."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.backends.tensorrt.api import builder_name, load
from trtllm_pt.backends.tensorrt.compile_rank import define_rank
from trtllm_pt.backends.tensorrt.interpreter.program import Program, read
from trtllm_pt.backends.tensorrt.log import Log
from trtllm_pt.backends.tensorrt.weights import RankWeights
from trtllm_pt.checkpoint.manifest import CheckpointManifest


def networks(checkpoint: Path, slot_size: int) -> list[Program]:
    """Return the networks of all ranks of a checkpoint, exactly as `trtllm-pt build` hands them to the compiler."""
    trt, log, manifest = load(builder_name()), Log(), CheckpointManifest.from_dir(checkpoint)
    builder = trt.Builder(log.listen(trt))
    found = []
    for rank in range(manifest.ranks):
        graph = define_rank(trt, builder, log, manifest, rank, RankWeights(checkpoint, manifest, rank), slot_size)
        found.append(read(trt, graph.network, graph.constants))
    return found
