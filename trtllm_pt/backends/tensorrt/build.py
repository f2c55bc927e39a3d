"""Build a directory of TensorRT plans, one per rank, in parallel processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from trtllm_pt.backends.backend import Backend, BuildReport, check_files
from trtllm_pt.backends.manifest import COMPILED, BuildOptions, Capacity, EngineManifest
from trtllm_pt.backends.tensorrt import compile_rank
from trtllm_pt.backends.tensorrt.api import builder_name, load, targets
from trtllm_pt.backends.tensorrt.compile_rank import BuiltRank, Job
from trtllm_pt.backends.tensorrt.limits import check
from trtllm_pt.backends.tensorrt.profiles import profiles_of
from trtllm_pt.backends.ticking import ticking
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.atomic import new_folder, refuse_existing, write_json
from trtllm_pt.job.process import end, last_line
from trtllm_pt.job.python import module_command

_PATIENCE = 10.0  # seconds for a killed worker to end


def build(
    backend: Backend, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None
) -> BuildReport:
    """Build an engine directory from a checkpoint. `output` appears complete or not at all.

    Raises UsageError for a checkpoint or options that cannot be built, before anything slow begins.
    """
    began = time.monotonic()
    checkpoint = checkpoint.resolve()
    manifest = CheckpointManifest.from_dir(checkpoint)
    capacity = options.resolved(manifest.model)
    builder = builder_name(options.extra.get("builder"))
    gpus = targets(builder, options.extra.get("gpu"), manifest.quant_algo)
    check(manifest, gpus)
    check_files(checkpoint, manifest)
    refuse_existing(output)
    version = load(builder).__version__  # packages of other names, such as tensorrt-cu13, contain TensorRT as well
    with new_folder(output) as folder:
        jobs = [
            Job(checkpoint=checkpoint, folder=folder, rank=rank, capacity=capacity, builder=builder, targets=gpus)
            for rank in range(manifest.ranks)
        ]
        built = _compile_all(jobs, _workers(options, manifest.ranks), progress)
        if (checkpoint / "tokenizer").is_dir():
            shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
        write_json(folder / "config.json", _config(backend, manifest, capacity, {builder: version}, built, gpus))
    return BuildReport(path=output, ranks=manifest.ranks, seconds=time.monotonic() - began)


def _workers(options: BuildOptions, ranks: int) -> int:
    """Return the number of processes that compile at the same time, by default one per core."""
    wanted = options.extra.get("workers")
    if wanted is not None and wanted < 1:
        raise UsageError(f"--workers ({wanted}) must be at least 1")
    return min(ranks, wanted or len(os.sched_getaffinity(0)))


def _config(
    backend: Backend,
    manifest: CheckpointManifest,
    capacity: Capacity,
    versions: Mapping[str, str],
    built: Sequence[BuiltRank],
    gpus: Sequence[str],
) -> dict[str, Any]:
    """Return the contents of config.json, with what was compiled under the key `compiled`."""
    engine = EngineManifest(
        backend=backend,
        checkpoint=manifest,
        options=capacity,
        versions=versions,
        format=backend.format,
    ).to_json()
    engine["build_config"]["kv_cache_type"] = "continuous"
    return engine | {
        COMPILED: {
            "targets": list(gpus) or [torch.cuda.get_device_name()],
            "profiles": [profile.to_json() for profile in profiles_of(capacity)],
            "collectives": built[0].collectives,  # the same for all ranks, or the build would have ended
            "plans": [{"bytes": each.bytes, "seconds": round(each.seconds, 1)} for each in built],
        }
    }


def _compile_all(jobs: Sequence[Job], workers: int, progress: bool | None) -> list[BuiltRank]:
    """Compile each job in a process of its own, `workers` at a time. The first failure ends all and is raised."""
    processes, shares = _Processes(), _Bar(len(jobs), progress)
    with ticking(shares.bar), ThreadPoolExecutor(workers) as pool:

        def compile_one(job: Job) -> BuiltRank:
            with tempfile.TemporaryFile("w+") as noise:
                worker = processes.start(job, noise)
                return _follow(worker, job, noise, lambda share: shares.show(job.rank, share))

        try:
            following = [pool.submit(compile_one, job) for job in jobs]
            return sorted((done.result() for done in as_completed(following)), key=lambda built: built.rank)
        finally:
            processes.end()


class _Processes:
    """The workers of a build. Once they have been ended, no other is started."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self._ended = False
        self._lock = threading.Lock()

    def start(self, job: Job, noise: TextIO) -> subprocess.Popen[str]:
        """Start a worker. What libraries print goes to the file `noise`."""
        command = module_command(compile_rank.__name__, job.to_json())
        with self._lock:
            if self._ended:
                raise RunError("the build has ended")  # another rank's failure is the one that is raised
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True)
            self._started.append(worker)
        return worker

    def end(self) -> None:
        with self._lock:
            self._ended = True
        for worker in self._started:
            end(worker, _PATIENCE, polite=())


def _follow(worker: subprocess.Popen[str], job: Job, noise: TextIO, show: Callable[[float], None]) -> BuiltRank:
    """Show how far a worker is until it has ended. Raises the worker's failure as UsageError or RunError."""
    assert worker.stdout is not None
    built = None
    for line in worker.stdout:
        said = json.loads(line)
        if "error" in said:
            raise (UsageError if said["usage"] else RunError)(said["error"])
        if "share" in said:
            show(said["share"])
        else:
            built = BuiltRank(**said["built"])
    status = worker.wait()
    if status or built is None:
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        noise.seek(0)
        said_last = f" after saying {last!r}" if (last := last_line(noise.read())) else ""
        raise RunError(f"the process that compiled rank {job.rank} {how}{said_last}; nothing was kept")
    return built


class _Bar:
    """The progress bar of a build. It shows the mean share that is done over all ranks."""

    def __init__(self, ranks: int, shown: bool | None) -> None:
        self._shares = dict.fromkeys(range(ranks), 0.0)
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
        self.bar = tqdm(total=100, desc="plans", bar_format=form, disable=None if shown is None else not shown)

    def show(self, rank: int, share: float) -> None:
        self._shares[rank] = share
        self.bar.n = 100 * sum(self._shares.values()) / len(self._shares)
        self.bar.refresh()
