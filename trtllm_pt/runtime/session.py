"""What every rank does in a step: run the plan that rank 0 made, and give it the logits."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from trtllm_pt.engine.embedded import EmbeddedEngine
from trtllm_pt.engine.graph import caches_shape
from trtllm_pt.engine.manifest import EngineManifest
from trtllm_pt.engine.versions import check_versions
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.kernels.build import LIBRARY
from trtllm_pt.kernels.library import load
from trtllm_pt.runtime.kv_pages import PAGE, pages_for
from trtllm_pt.runtime.step_plan import StepPlan
from trtllm_pt.runtime.world import World

_SILENCE_SECONDS = 8.0  # of a rank that is stopped, after which the others end; it beats even while it computes
_MEMORY_SHARE = 0.5  # of what is available now, for the KV caches of all ranks on this machine


class Session:
    """One rank of a running engine."""

    def __init__(self, engine: EmbeddedEngine, world: World) -> None:
        self.engine, self.world = engine, world
        self.pids = world.gather_all(os.getpid())
        self.forwards = 0
        self._reduces_before = torch.ops.trtllm_pt.reduces_seen()

    @property
    def manifest(self) -> EngineManifest:
        return self.engine.manifest

    @property
    def sync_points_seen(self) -> int | None:
        """All-reduces per forward since this session began; None before the first. Raises RunError for a fraction."""
        seen = torch.ops.trtllm_pt.reduces_seen() - self._reduces_before
        if not self.forwards:
            return None
        if seen % self.forwards:
            raise RunError(f"{seen} all-reduces were seen in {self.forwards} forwards")
        return seen // self.forwards  # type: ignore[no-any-return]

    def run(self, plan: StepPlan) -> Tensor | None:
        """One forward on all ranks. Rank 0: float32 logits [R, V padded]; elsewhere None."""
        arrays = (plan.tokens, plan.starts, plan.offsets, plan.pages, plan.last)
        logits = self.engine.run(*(torch.from_numpy(array) for array in arrays))
        self.forwards += 1
        return self.world.gather_logits(logits)

    def follow(self) -> None:
        """Ranks but 0: run plans until rank 0 stops."""
        options = self.manifest.options
        size = StepPlan.max_size(options.max_batch_size, options.max_num_tokens, self.manifest.max_seq_len)
        buffer = torch.empty(size, dtype=torch.int64).numpy()
        while (plan := self.world.receive_plan(buffer)) is not None:
            self.run(plan)
        torch.ops.trtllm_pt.leave_watch()

    def close(self) -> None:
        """Rank 0: the others stop following."""
        torch.ops.trtllm_pt.leave_watch()
        self.world.send_plan(None)


def open_session(folder: Path, *, threads: int | None = None, kv_tokens: int | None = None) -> Session:
    """Join the ranks of an engine directory and load this one.

    threads: per rank; None: the machine's cores divided among the ranks. kv_tokens: tokens that the KV cache has room
    for; None: enough for every slot, within half of the memory available.
    Raises UsageError for an engine that cannot run here.
    """
    manifest = EngineManifest.from_dir(folder)
    check_versions(folder, manifest)
    world = World.join(manifest.ranks)  # first: a rank that ends before MPI is up would hang the others
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // manifest.ranks))
    torch.set_grad_enabled(False)
    load(folder / LIBRARY)
    _check_processor()
    world.bind()
    _watch_ranks(world)
    pages = world.broadcast(_pages(manifest, kv_tokens) if world.rank == 0 else 0)
    return Session(EmbeddedEngine(folder, manifest, world.rank, pages), world)


def _check_processor() -> None:
    """Raises UsageError where the graph cannot run, or TRTLLM_PT_ISA names what is not there."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        raise UsageError("the embedded engine needs a processor with AVX2")
    try:
        torch.ops.trtllm_pt.isa()
    except RuntimeError as error:
        raise UsageError(str(error).splitlines()[0]) from None


def _watch_ranks(world: World) -> None:
    """From here on a rank that hangs ends the others. Only where all ranks are on one machine: they share a page."""
    if world.size == 1 or len(set(world.gather_all(socket.gethostname()))) > 1:
        return
    with tempfile.NamedTemporaryFile(prefix="trtllm_pt-watch-", dir=_shared_memory()) as page:
        page.write(bytes(16 * world.size))
        page.flush()
        torch.ops.trtllm_pt.watch_ranks(world.broadcast(page.name), world.rank, world.size, _SILENCE_SECONDS)
        world.barrier()  # all have it mapped: its name is not needed any more


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _pages(manifest: EngineManifest, kv_tokens: int | None) -> int:
    """KV pages of a rank."""
    sequence, config = pages_for(manifest.max_seq_len), manifest.model
    if kv_tokens is not None:
        pages = kv_tokens // PAGE
    else:
        shape = caches_shape(config, manifest.ranks, 1)
        page_bytes = config.num_layers * torch.Size(shape).numel() * manifest.checkpoint.torch_dtype.itemsize
        affordable = int(_available_bytes() * _MEMORY_SHARE) // manifest.ranks // page_bytes
        pages = min(manifest.options.max_batch_size * sequence, affordable)
    if pages < sequence:
        raise UsageError(
            f"the KV cache has room for {pages * PAGE} tokens, but max_seq_len ({manifest.max_seq_len}) needs "
            f"{sequence * PAGE}: build with a smaller --max_seq_len, or free memory"
        )
    return pages


def _available_bytes() -> int:
    """Of the machine, or of the container that this runs in."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available
