"""Compile the plan of one rank in this process.

Run as a program, this module is a worker of `trtllm-pt build`. Its argument is a Job as JSON. It prints lines of JSON:
the share that is done, again and again, and at the end what it has built or why it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from trtllm_pt.backends.manifest import Capacity
from trtllm_pt.backends.tensorrt import collectives
from trtllm_pt.backends.tensorrt.api import RTX, TITLES, load
from trtllm_pt.backends.tensorrt.graph import Graph
from trtllm_pt.backends.tensorrt.limits import with_fields
from trtllm_pt.backends.tensorrt.log import Log
from trtllm_pt.backends.tensorrt.network import Weights, define
from trtllm_pt.backends.tensorrt.profiles import add_profile, profiles_of, slot_size_of
from trtllm_pt.backends.tensorrt.progress import Progress, monitor
from trtllm_pt.backends.tensorrt.timing_cache import timing_cache
from trtllm_pt.backends.tensorrt.weights import RankWeights
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError, TrtllmPtError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A rank of a checkpoint to compile into `folder`."""

    checkpoint: Path
    folder: Path
    rank: int
    capacity: Capacity
    builder: str  # the package that compiles
    targets: Sequence[str]  # GPU architectures; () leaves them to the builder

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)  # str converts the paths

    @classmethod
    def from_json(cls, text: str) -> Job:
        data = json.loads(text)
        paths = {name: Path(data[name]) for name in ("checkpoint", "folder")}
        return cls(**{**data, **paths, "capacity": Capacity(**data["capacity"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRank:
    """The result of compiling a rank."""

    rank: int
    seconds: float
    bytes: int  # size of the plan
    collectives: Mapping[str, Mapping[str, int]]  # of each profile, how often the compiler's log has each kind


def plan_file(folder: Path, rank: int) -> Path:
    """Return the path of a rank's plan in an engine directory."""
    return folder / f"rank{rank}.plan"


def compile_rank(job: Job, report: Callable[[float], None]) -> BuiltRank:
    """Compile a rank and write its plan. `report` gets the share that is done, 0 to 1.

    Raises RunError if the collectives of the network or of the plan are not the schedule's, or if TensorRT fails.
    """
    began = time.monotonic()
    trt, log, manifest = load(job.builder), Log(), CheckpointManifest.from_dir(job.checkpoint)
    profiles = profiles_of(job.capacity)
    builder = trt.Builder(log.listen(trt))
    weights = RankWeights(job.checkpoint, manifest, job.rank)
    slot_size = slot_size_of(job.capacity.max_seq_len)
    graph = define_rank(trt, builder, log, manifest, job.rank, weights, slot_size)
    network = graph.network
    collectives.check_defined(network, manifest, job.rank)
    config = _config(trt, builder, job, manifest)
    for profile in profiles:
        add_profile(builder, network, config, profile)
    config.progress_monitor = monitor(trt, Progress(report))
    path = plan_file(job.folder, job.rank)
    if not _write_plan(trt, builder, network, config, job.builder, path):
        reason = with_fields(log.reason(), manifest.model)
        raise RunError(f"{TITLES[job.builder]} cannot compile rank {job.rank}: {reason}; nothing was kept")
    collectives.check_compiled(log.collectives, manifest, job.rank, profiles)
    return BuiltRank(
        rank=job.rank,
        seconds=time.monotonic() - began,
        bytes=path.stat().st_size,
        collectives=collectives.kinds(log.collectives, profiles),
    )


def define_rank(
    trt: ModuleType,
    builder: Any,
    log: Log,
    manifest: CheckpointManifest,
    rank: int,
    weights: Weights,
    slot_size: int,
) -> Graph:
    """Return the network of a rank, which holds the memory of its constants. slot_size: positions of a slot."""
    network = builder.create_network(0)
    network.name = f"rank{rank}"  # without a name, TensorRT makes one up, and equal builds give different plans
    graph = Graph(trt, network, log)
    define(graph, manifest, rank, weights, slot_size)
    return graph


def _write_plan(trt: ModuleType, builder: Any, network: Any, config: Any, name: str, path: Path) -> bool:
    """Compile a network into a file, and return whether TensorRT could. Raises RunError if writing fails."""
    try:
        with contextlib.nullcontext() if name == RTX else timing_cache(trt, config), path.open("wb") as file:
            writer = _writer(trt, file)
            built: bool = builder.build_serialized_network_to_stream(network, config, writer)
            if writer.failure is not None:
                raise writer.failure
    except OSError as error:
        raise RunError(f"writing {path.name} failed: {error.strerror or error}; nothing was kept") from error
    return built


def _writer(trt: ModuleType, file: BinaryIO) -> Any:
    """Return TensorRT's stream writer to a file. It spares the memory of the whole plan.

    An exception cannot pass through TensorRT, so the writer keeps the first one in `failure`.
    """

    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]  # the bindings have no types
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.failure: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                self.failure = self.failure or error
                return 0

    return Writer()


def _config(trt: ModuleType, builder: Any, job: Job, manifest: CheckpointManifest) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # only then the log names the collectives
    if manifest.dtype == "float32":
        config.clear_flag(trt.BuilderFlag.TF32)  # which would round the factors of products to 10 bits
    if job.targets:
        config.num_compute_capabilities = len(job.targets)
        for number, target in enumerate(job.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), number)
    return config


def main() -> None:
    """Run the worker. Only its reports go to stdout, which the parent process reads; output of libraries goes to
    stderr."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")

    try:
        built = compile_rank(Job.from_json(sys.argv[1]), lambda share: say(share=share))
    except TrtllmPtError as error:
        say(error=str(error), usage=isinstance(error, UsageError))
        sys.exit(error.exit_status)
    say(built=asdict(built))


if __name__ == "__main__":
    main()
