"""Build a TensorRT engine for each rank with TensorRT-LLM's builder, in parallel under mpirun or in workers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

import torch
from tqdm import tqdm

from trtllm_pt.backends.backend import Backend, BuildReport, check_files
from trtllm_pt.backends.manifest import ENGINE_KEY, RECORDED, BuildOptions
from trtllm_pt.backends.tensorrt_llm.build_rank import BuiltRank, Job, build_ranks
from trtllm_pt.backends.tensorrt_llm.options import check, workers_of
from trtllm_pt.backends.ticking import ticking
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import (
    INSTALL_TENSORRT_LLM,
    MPI_OF_TENSORRT_LLM,
    TENSORRT_LLM_VERSION,
    RunError,
    TrtllmPtError,
    UsageError,
)
from trtllm_pt.files.atomic import new_folder, refuse_existing, write_json
from trtllm_pt.job.process import end
from trtllm_pt.job.python import module_command
from trtllm_pt.job.world import World
from trtllm_pt.model.config import read_json
from trtllm_pt.model.quantization import WEIGHT_ONLY

Report = Callable[[BuiltRank], None]
_PATIENCE = 60.0  # seconds for a killed worker to free its GPU's memory


def build(
    backend: Backend, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None
) -> BuildReport:
    """Build an engine directory from a checkpoint. `output` appears complete or not at all.

    Under mpirun, MPI rank r builds the ranks r, r + size and so on; otherwise the ranks are divided over `workers`
    processes. Raises UsageError for a checkpoint or options that cannot be built, before TensorRT-LLM is imported.
    """
    began = time.monotonic()
    checkpoint, dry_run = checkpoint.resolve(), bool(options.extra.get("dry_run"))
    manifest = CheckpointManifest.from_dir(checkpoint)
    check(options, manifest)
    check_files(checkpoint, manifest)
    refuse_existing(output)
    found = _check_machine(manifest)
    world = World.join(None, MPI_OF_TENSORRT_LLM)
    if found != TENSORRT_LLM_VERSION and world.rank == 0:
        _say(f"TensorRT-LLM {found} is installed, but trtllm_pt is made for {TENSORRT_LLM_VERSION}")
    bars = progress if world.size == 1 else False

    def fill() -> None:
        with _folder(output, world, dry_run) as folder:
            done = _Progress(manifest.ranks, bars)
            with ticking(done.bar):
                world.together(lambda: _build(checkpoint, folder, options, manifest.ranks, world, done.report))
            if not dry_run:
                world.together(
                    lambda: None if world.rank else _finish(backend, checkpoint, folder, manifest, done.built[0])
                )

    world.together(fill)
    return BuildReport(path=output, ranks=manifest.ranks, seconds=time.monotonic() - began)


def _check_machine(manifest: CheckpointManifest) -> str:
    """Return the version of TensorRT-LLM.

    Raises UsageError if TensorRT-LLM, its engine builder, or a GPU that can run the checkpoint is missing.
    """
    try:
        import_module("tensorrt_llm.builder")  # later versions of tensorrt_llm do not have this module
        found = str(import_module("tensorrt_llm.version").__version__)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the TensorRT engine is built by TensorRT-LLM ({reason}): {INSTALL_TENSORRT_LLM}") from None
    if not torch.cuda.device_count():
        raise UsageError("no GPU is visible: TensorRT chooses an engine's kernels by timing them on the GPU")
    gpu = torch.cuda.get_device_properties(0)
    if "FP8" in manifest.quantized and (gpu.major, gpu.minor) < (8, 9):
        raise UsageError(f"quantization ({manifest.quantized}): FP8 needs an Ada GPU or newer; this is a {gpu.name}")
    if manifest.quant_algo in WEIGHT_ONLY and 10 <= gpu.major < 12:
        raise UsageError(
            f"quantization ({manifest.quantized}) is not supported by TensorRT-LLM on Blackwell; this is a {gpu.name}"
        )
    return found


@contextmanager
def _folder(output: Path, world: World, dry_run: bool) -> Iterator[Path]:
    """Yield the folder to which all processes write their ranks. It becomes `output` when rank 0 leaves the block,
    and is removed after a dry run."""
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    with ExitStack() as stack:
        folder = world.together(lambda: None if world.rank else stack.enter_context(new_folder(output)))
        folder = world.broadcast(folder)
        assert folder is not None
        yield folder


def _build(checkpoint: Path, folder: Path, options: BuildOptions, ranks: int, world: World, report: Report) -> None:
    """Build this process's share of the ranks, in this process or in workers."""
    devices = torch.cuda.device_count()
    workers = 1 if world.size > 1 else min(workers_of(options), ranks, devices)
    share, of = (world.rank, world.size) if workers == 1 else (0, workers)
    jobs = [
        Job(
            checkpoint=checkpoint,
            folder=folder,
            options=options,
            ranks=range(first, ranks, of),
            device=first % devices,
        )
        for first in range(share, share + workers)
    ]
    try:
        if workers > 1:
            _in_workers(jobs, report)
        else:
            build_ranks(jobs[0], report)
    except TrtllmPtError as error:
        if world.size > 1:
            _say(f"{error}; the other processes finish their ranks first")
        raise


def _in_workers(jobs: Sequence[Job], report: Report) -> None:
    """Run each job in a process. The first failure stops the other processes and is raised."""
    command = module_command("trtllm_pt.backends.tensorrt_llm.build_rank")
    workers = [subprocess.Popen([*command, job.to_json()], stdout=subprocess.PIPE, text=True) for job in jobs]
    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            following = [pool.submit(_follow, *pair, report) for pair in zip(workers, jobs, strict=True)]
            for done in as_completed(following):
                done.result()
        finally:
            for worker in workers:
                end(worker, _PATIENCE, polite=())


def _follow(worker: subprocess.Popen[str], job: Job, report: Report) -> None:
    """Report the ranks that a worker finishes until it exits. Raises the worker's failure as UsageError or RunError."""
    assert worker.stdout is not None
    for line in worker.stdout:
        said = json.loads(line)
        if "error" in said:
            raise (UsageError if said["usage"] else RunError)(said["error"])
        report(BuiltRank(**said))
    if status := worker.wait():
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        raise RunError(f"the worker that built the ranks {', '.join(map(str, job.ranks))} {how}; nothing was kept")


class _Progress:
    """Shows a line for each finished rank, and moves `bar`. `built` has the finished ranks."""

    def __init__(self, ranks: int, shown: bool | None) -> None:
        self.built: dict[int, BuiltRank] = {}
        self.bar = tqdm(total=ranks, desc="engines", unit="rank", disable=None if shown is None else not shown)

    def report(self, built: BuiltRank) -> None:
        self.built[built.rank] = built
        _say(f"rank {built.rank}: {built.bytes / 2**30:.2f} GiB in {built.seconds:.1f} s")
        self.bar.update()


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _finish(backend: Backend, checkpoint: Path, folder: Path, manifest: CheckpointManifest, first: BuiltRank) -> None:
    """Add the tokenizer and the number of plugin layers to the engine directory, and remove paths of this machine from
    config.json."""
    lacking = [rank for rank in range(manifest.ranks) if not (folder / f"rank{rank}.engine").exists()]
    if lacking:
        raise RunError(f"rank{lacking[0]}.engine is missing: do all processes share {folder.parent}? nothing was kept")
    config = read_json(folder / "config.json") | {RECORDED: dict(first.plugins)}
    built = config["build_config"]
    caches = {name: built.get(name) for name in ("input_timing_cache", "output_timing_cache")}
    built |= {name: Path(path).name for name, path in caches.items() if path}
    own = {"backend": backend.name, "format": backend.format, "versions": {"TensorRT-LLM": config.get("version", "?")}}
    write_json(folder / "config.json", config | {ENGINE_KEY: own})
    if (checkpoint / "tokenizer").is_dir():
        shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
