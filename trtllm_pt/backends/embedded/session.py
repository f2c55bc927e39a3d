"""Run the steps of an engine on every rank: each rank runs the plan of rank 0 and sends its logits to rank 0."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trtllm_pt import logs
from trtllm_pt._version import __version__
from trtllm_pt.backends.embedded.all_reduce_counts import Reduces, settle
from trtllm_pt.backends.embedded.constants import PAGE
from trtllm_pt.backends.embedded.engine import EmbeddedEngine
from trtllm_pt.backends.embedded.graph import cache_info
from trtllm_pt.backends.embedded.heap import keep_freed_memory
from trtllm_pt.backends.embedded.kernels.build import LIBRARY
from trtllm_pt.backends.embedded.kernels.library import load
from trtllm_pt.backends.embedded.kv_pages import pages_for
from trtllm_pt.backends.embedded.logits_messages import LogitsMessages
from trtllm_pt.backends.embedded.logits_view import Views
from trtllm_pt.backends.embedded.machine_watch import watch_machines
from trtllm_pt.backends.embedded.pack import storage_of
from trtllm_pt.backends.embedded.scores import merge, score_slice
from trtllm_pt.backends.embedded.step_plan import StepMessage, StepPlan
from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.batching.follow import Follower, follow
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.job.nodes import check_same, file_digests, ranks_beside
from trtllm_pt.requests.messages import TokenScore

log = logging.getLogger(__name__)
# The other ranks abort if a rank gives no heartbeat for this long. A rank that computes still has a heartbeat.
_SILENCE_SECONDS = 8.0
# The same for a machine, of which nothing is heard over the network for this long.
_MACHINE_SILENCE_SECONDS = 5.0
_WATCH_BYTES = 24  # of a rank in the page of watch_ranks
_SCORED_ROWS = 64  # rows of a prompt whose logits a rank has in memory at a time
_MEMORY_SHARE = 0.5  # share of the available memory for the KV caches of all ranks on this machine


class Session:
    """One rank of a running engine."""

    def __init__(self, engine: EmbeddedEngine, world: LogitsMessages) -> None:
        self.engine, self.world = engine, world
        self.pids = world.gather_all(os.getpid())
        self.hosts = world.gather_all(socket.gethostname())
        options = engine.manifest.options
        self.message = StepMessage(options.max_batch_size, options.max_num_tokens, options.max_seq_len)
        self.forwards = 0
        self._reduces = Reduces()
        self.vocab_size = engine.manifest.model.vocab_size
        self.scores: list[TokenScore] = []  # on rank 0, of the last step that had rows to score
        self._views = Views(self.vocab_size)
        self._logits: Tensor | None = None

    @property
    def manifest(self) -> EngineManifest:
        return self.engine.manifest

    @property
    def reduces(self) -> Reduces:
        """The all-reduces of this session until now."""
        settle()
        return self._reduces

    @property
    def sync_points_seen(self) -> int | None:
        """The number of all-reduces per forward pass in this session, or None before the first.

        Raises RunError if it is not a whole number.
        """
        if not self.forwards:
            return None
        calls = self.reduces.calls
        if calls % self.forwards:
            raise RunError(f"{calls} all-reduces were counted in {self.forwards} forward passes: not a multiple")
        return calls // self.forwards

    def run(self, plan: StepPlan) -> npt.NDArray[np.float32]:
        """On rank 0, run one forward pass on all ranks and return float32 logits [R, V], valid until the next call.

        `scores` then has the log-probs of the plan's scored rows.
        """
        self.message.write(plan)
        if self.world.size > 1:
            self.world.send_plan(self.message.numbers)
        self._logits = self._forward()
        assert self._logits is not None, "rank 0 has the logits"
        return self._views.of(self._logits, len(plan.last))

    @property
    def waiting(self) -> bool:
        """On a rank other than 0, whether rank 0 has sent the next step."""
        return self.world.has_message

    def run_next(self) -> bool:
        """On a rank other than 0, run the next step that rank 0 sends. Returns False if rank 0 has stopped."""
        going_on = self.world.receive_plan(self.message.room)
        if going_on:
            self.message.read()
            self._forward()
        return going_on

    def _forward(self) -> Tensor | None:
        self._reduces.begin()
        stream = self.engine.run(*self.message.inputs)
        self.forwards += 1
        self.scores = []
        if self.message.targets is not None:
            last = self.message.last
            self.scores = self._score(stream[last:], self.message.targets)
            stream = stream[:last]
        logits = self.engine.logits(stream)
        return logits if self.world.size == 1 else self.world.gather_logits(logits)

    def _score(self, stream: Tensor, targets: Tensor) -> list[TokenScore]:
        """Return the log-probs of targets [S] on rank 0, with whole rows of logits if the message asks for them.

        Each rank computes the logits of _SCORED_ROWS rows at a time.
        """
        first, top = self.world.rank * self.engine.vocab_rows, self.message.top
        parts, rows = [], []
        for begin in range(0, len(targets), _SCORED_ROWS):
            piece = slice(begin, begin + _SCORED_ROWS)
            logits = self.engine.logits(stream[piece])
            parts.append(score_slice(logits, first, self.vocab_size, targets[piece], top))
            if self.message.whole and (gathered := self.world.gather_logits(logits)) is not None:
                rows += [row.tobytes() for row in gathered[:, : self.vocab_size].numpy()]
        found = self.world.gather(torch.cat(parts))
        scores = [] if found is None else merge(found, self.engine.vocab_rows, self.vocab_size, top)
        return [score._replace(logits=row) for score, row in zip(scores, rows, strict=True)] if rows else scores

    def follow(self) -> None:
        """On a rank other than 0, run steps until rank 0 stops."""
        follow_all([self])

    def peak_memory_bytes(self) -> int | None:
        """Return the largest peak memory of the ranks on this machine, including mapped files, or None if unknown."""
        here = (pid for pid, host in zip(self.pids, self.hosts, strict=True) if host == self.hosts[self.world.rank])
        return max((peak for pid in here if (peak := _peak_bytes(pid)) is not None), default=None)

    def close(self) -> None:
        """On rank 0, make the other ranks stop."""
        torch.ops.trtllm_pt.leave_watch()
        self.world.send_plan(None)


@torch.no_grad()
def follow_all(followers: Sequence[Follower]) -> None:
    """On a rank other than 0, do the work that rank 0 asks for until it has stopped every follower."""
    follow(followers)
    torch.ops.trtllm_pt.leave_watch()


def open_session(folder: Path, *, threads: int | None = None, kv_tokens: int | None = None) -> Session:
    """Join the ranks of an engine directory and load this one.

    threads: threads per rank; None divides the machine's cores by the ranks. kv_tokens: tokens that fit into the KV
    cache; None makes it large enough for max_batch_size sequences of max_seq_len, within half of the available memory.
    Raises UsageError for an engine that cannot run here.
    """
    return open_sessions([folder], threads=threads, kv_tokens=kv_tokens)[0]


def open_sessions(
    folders: Sequence[Path], *, threads: int | None = None, kv_tokens: int | None = None
) -> list[Session]:
    """Open several engine directories in the same ranks. Only one of them may run at a time.

    Raises UsageError if they have different numbers of ranks.
    """
    manifests = [read_engine(folder) for folder in folders]
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        manifest.backend.check_versions(folder, manifest)
        if manifest.ranks != first.ranks:
            raise UsageError(f"{folder} has {manifest.ranks} ranks, {folders[0]} has {first.ranks}; both need the same")
    # MPI starts first, because a rank that exits before it has started would leave the others waiting.
    world = LogitsMessages.join(first.ranks, first.backend.mpi_hint)
    nodes = world.nodes()
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // len(ranks_beside(world.rank, nodes))))
    keep_freed_memory()
    load(folders[0] / LIBRARY)
    _check_processor()
    if len(nodes) > 1:
        _check_nodes(world, nodes, folders)
    world.bind()
    _watch_ranks(world, nodes)
    if len(nodes) > 1:
        watch_machines(world, nodes, _MACHINE_SILENCE_SECONDS)
    return [_load(*pair, world.twin(), kv_tokens, nodes) for pair in zip(folders, manifests, strict=True)]


def _check_nodes(world: LogitsMessages, nodes: list[list[int]], folders: Sequence[Path]) -> None:
    """Raise UsageError, naming the node, if one has other engines, another instruction set or another version."""
    first_here = world.rank in {ranks[0] for ranks in nodes}  # reads the files for all ranks of this node
    facts = {
        "trtllm_pt": f"version {__version__}",
        "torch": f"version {torch.__version__}",
        "the instruction set (TRTLLM_PT_ISA)": torch.ops.trtllm_pt.isa(),
        **{name: digest for folder in folders for name, digest in (file_digests(folder) if first_here else {}).items()},
    }
    check_same(world, nodes, facts)


def _load(
    folder: Path, manifest: EngineManifest, world: LogitsMessages, kv_tokens: int | None, nodes: list[list[int]]
) -> Session:
    first_here = world.rank in {ranks[0] for ranks in nodes}
    affordable = _pages(manifest, kv_tokens, len(ranks_beside(world.rank, nodes))) if first_here else None
    pages = min(pages for pages in world.gather_all(affordable) if pages is not None)  # every node has room for them
    session = Session(EmbeddedEngine(folder, manifest, world.rank, pages), world)
    loaded = logs.fields(engine=folder, rank=world.rank, threads=torch.get_num_threads(), kv_tokens=pages * PAGE)
    log.info("engine loaded", extra=loaded)
    return session


def _check_processor() -> None:
    """Raise UsageError if this CPU cannot run the graph, or does not have the instruction set in TRTLLM_PT_ISA."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        raise UsageError("the embedded engine needs a processor with AVX2")
    try:
        torch.ops.trtllm_pt.isa()
    except RuntimeError as error:
        raise UsageError(str(error).splitlines()[0]) from None


def _watch_ranks(world: LogitsMessages, nodes: list[list[int]]) -> None:
    """Make all ranks abort when one of those on a node hangs. They share a memory page."""
    if max(map(len, nodes)) == 1:
        return
    here = ranks_beside(world.rank, nodes)
    with tempfile.NamedTemporaryFile(prefix="trtllm_pt-watch-", dir=_shared_memory()) as page:
        page.write(bytes(_WATCH_BYTES * len(here)))
        page.flush()
        name = world.gather_all(page.name)[here[0]]
        torch.ops.trtllm_pt.watch_ranks(name, world.rank, here.index(world.rank), len(here), _SILENCE_SECONDS)
        world.barrier()  # after this every rank has mapped the file, and its name can be removed


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _pages(manifest: EngineManifest, kv_tokens: int | None, neighbours: int) -> int:
    """Return the number of KV pages per rank, if `neighbours` ranks share this machine.

    Raises UsageError if one sequence of max_seq_len does not fit.
    """
    sequence, config = pages_for(manifest.max_seq_len), manifest.model
    if kv_tokens is not None:
        pages = kv_tokens // PAGE
    else:
        page_bytes = config.num_layers * cache_info(config, manifest.ranks, 1, storage_of(manifest.checkpoint)).nbytes
        affordable = int(_available_bytes() * _MEMORY_SHARE) // neighbours // page_bytes
        pages = min(manifest.options.max_batch_size * sequence, affordable)
    if pages < sequence:
        raise UsageError(
            f"the KV cache has room for {pages * PAGE} tokens, but max_seq_len ({manifest.max_seq_len}) needs "
            f"{sequence * PAGE}: build with a smaller --max_seq_len, or free memory"
        )
    return pages


def _peak_bytes(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # the process runs on another machine
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _available_bytes() -> int:
    """Return the available memory of the machine, or of the container if that has less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available
