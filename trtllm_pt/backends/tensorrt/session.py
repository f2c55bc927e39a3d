"""Run the steps of an engine on every rank: each rank runs the plan of rank 0 on its GPU.

All ranks get the same logits, so rank 0 needs none from the others.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trtllm_pt import logs
from trtllm_pt.backends.manifest import COMPILED, EngineManifest
from trtllm_pt.backends.tensorrt import nccl
from trtllm_pt.backends.tensorrt.api import RTX, TITLES, load
from trtllm_pt.backends.tensorrt.compile_rank import plan_file
from trtllm_pt.backends.tensorrt.engine import RankEngine
from trtllm_pt.backends.tensorrt.gpu import Gpu, visible
from trtllm_pt.backends.tensorrt.profiles import slot_size_of
from trtllm_pt.backends.tensorrt.slot_plan import SlotPlan
from trtllm_pt.batching.follow import follow
from trtllm_pt.batching.rank_messages import RankMessages
from trtllm_pt.batching.sampling import score_rows
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.requests.messages import TokenScore

log = logging.getLogger(__name__)


class PlanMessages(RankMessages):
    """Messages of int32, which the GPU copies as they are."""

    typecode = "i"


class Session:
    """One rank of a running engine."""

    def __init__(self, engine: RankEngine, world: RankMessages) -> None:
        self.engine, self.world = engine, world
        self.pids, self.hosts = world.gather_all(os.getpid()), world.gather_all(socket.gethostname())
        self.scores: list[TokenScore] = []  # on rank 0, of the last step that had rows to score
        self._vocab_size = engine.manifest.model.vocab_size

    def run(self, plan: SlotPlan) -> npt.NDArray[np.float32]:
        """On rank 0, run one step on all ranks and return float32 logits [R, V], valid until the next call.

        `scores` then has the log-probs of the plan's scored rows.
        """
        message, wanted = self.engine.message, plan.wanted
        message.write(plan)
        if self.world.size > 1:
            self.world.send_plan(message.numbers)
        scored = wanted + len(plan.targets)
        self.engine.run(scored)
        self.scores = []
        if scored > wanted:
            rows = self.engine.logits[wanted:scored, : self._vocab_size]
            self.scores = score_rows(rows, plan.targets, plan.top)
        return self.engine.logits[:wanted, : self._vocab_size]

    @property
    def waiting(self) -> bool:
        """On a rank other than 0, whether rank 0 has sent the next step."""
        return self.world.has_message

    def run_next(self) -> bool:
        """On a rank other than 0, run the next step that rank 0 sends. Returns False if rank 0 has stopped."""
        going_on = self.world.receive_plan(self.engine.message.room)
        if going_on:
            self.engine.message.read()
            self.engine.run(0)
        return going_on

    def follow(self) -> None:
        """On a rank other than 0, run steps until rank 0 stops."""
        follow([self])

    def close(self) -> None:
        """On rank 0, make the other ranks stop."""
        self.world.send_plan(None)


def open_session(folder: Path, manifest: EngineManifest, kv_tokens: int | None) -> Session:
    """Join the ranks of an engine directory and load this one. Raises UsageError for an engine that cannot run here."""
    wanted = slots_for(manifest, kv_tokens)
    world = PlanMessages.join(manifest.ranks, manifest.backend.mpi_hint)
    host = socket.gethostname()
    neighbours = [rank for rank, name in enumerate(world.gather_all(host)) if name == host]
    engine = world.together(lambda: _load(folder, manifest, world.rank, neighbours))
    slots = min(world.gather_all(engine.affordable_slots() if wanted is None else wanted))
    world.together(lambda: _allocate(engine, slots))
    engine.prepare(nccl.communicator(world) if world.size > 1 else None)
    session = Session(engine, world)
    size = slots * manifest.max_seq_len
    log.info("engine loaded", extra=logs.fields(engine=folder, rank=world.rank, gpu=engine.gpu.name, kv_tokens=size))
    return session


def slots_for(manifest: EngineManifest, kv_tokens: int | None) -> int | None:
    """Return the number of slots of the KV cache that --kv-tokens asks for. None: as many as fit into the memory."""
    if kv_tokens is None:
        return None
    options = manifest.options
    most = options.max_batch_size * slot_size_of(options.max_seq_len)  # somewhat more, for callers that round up
    if not options.max_seq_len <= kv_tokens <= most:
        raise UsageError(
            f"kv_tokens ({kv_tokens}) must be between max_seq_len ({options.max_seq_len}), which each request takes, "
            f"and {most}, for max_batch_size ({options.max_batch_size}) requests"
        )
    return min(kv_tokens // options.max_seq_len, options.max_batch_size)


def _load(folder: Path, manifest: EngineManifest, rank: int, neighbours: Sequence[int]) -> RankEngine:
    """Load the plan of a rank on a GPU. neighbours: the ranks on this machine, which have a GPU each."""
    count = visible()
    if not count:
        raise UsageError(
            f"{folder} holds TensorRT plans, and no NVIDIA GPU is visible here. Without one, `trtllm-pt inspect` shows "
            "them, `make tensorrt-demo` executes such networks on PyTorch, and `trtllm-pt build --engine embedded` "
            "builds the same checkpoint for this machine"
        )
    if len(neighbours) > count:
        raise UsageError(f"{len(neighbours)} ranks run on this machine and need a GPU each, but {count} are visible")
    gpu = Gpu(neighbours.index(rank))
    (builder,) = manifest.versions
    _check_target(folder, builder, gpu)
    return RankEngine(load(builder), plan_file(folder, rank), manifest, gpu)


def _check_target(folder: Path, builder: str, gpu: Gpu) -> None:
    """Raise UsageError if the GPU is not one of those that the plans were compiled for."""
    targets = read_json(folder / "config.json").get(COMPILED, {}).get("targets", [])
    own = gpu.architecture if builder == RTX else gpu.name
    if own not in targets:
        raise UsageError(
            f"{folder} was compiled for {', '.join(targets)}, and this GPU is {gpu.name} ({gpu.architecture}): build "
            f"with {TITLES[builder]} for it"
        )


def _allocate(engine: RankEngine, slots: int) -> None:
    size = engine.manifest.max_seq_len
    try:
        if slots < 1:
            raise torch.OutOfMemoryError
        engine.allocate(slots)
    except torch.OutOfMemoryError:
        raise UsageError(
            f"the memory of {engine.gpu.name} has no room for a KV cache of {max(slots, 1) * size} tokens: lower "
            "kv_tokens, build with a smaller --max_seq_len, or use more ranks"
        ) from None
