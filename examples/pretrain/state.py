"""What a training run keeps: RUN/step-N/rankR.pt, the state of each process after N steps.

A folder counts once it has the files of all processes. So a run that is killed at any time, also while it saves, goes
on from a state that is whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from parts import whole_of
from ranks import Ranks
from torch import Tensor

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_file
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import tensors


def save(run: Path, state: dict[str, Any], step: int, ranks: Ranks) -> None:
    """Write the states of all processes after `step` steps, and remove older ones."""
    folder = run / f"step-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / f"rank{ranks.rank}.pt") as path:
        torch.save({**state, "step": step, "ranks": ranks.size}, path)
    ranks.wait_for_all()
    if ranks.rank == 0:
        for old in run.glob("step-*"):
            if old != folder:
                shutil.rmtree(old)


def latest(run: Path) -> list[Path]:
    """Return the files of all processes after the last step that they all saved, or [] if there is no such step."""
    for folder in sorted(run.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True):
        files = [folder / f"rank{rank}.pt" for rank in range(len(list(folder.glob("rank*.pt"))))]
        if files and files[0].exists() and torch.load(files[0], weights_only=True, mmap=True)["ranks"] == len(files):
            return files
    return []


def restore(run: Path, ranks: Ranks) -> dict[str, Any] | None:
    """Return this process's last state, or None for a new run. Raises UsageError for another number of processes."""
    files = latest(run)
    if not files:
        return None
    if len(files) != ranks.size:
        raise UsageError(f"{run} was trained by {len(files)} processes, not by {ranks.size}; go on with {len(files)}")
    state: dict[str, Any] = torch.load(files[ranks.rank], weights_only=True, map_location=ranks.device)
    return state


def whole_weights(run: Path, config: ModelConfig) -> tuple[dict[str, Tensor], int]:
    """Return the weights of a run's last state, put together from all processes, and its step."""
    states = [torch.load(file, weights_only=True, map_location="cpu") for file in latest(run)]
    if not states:
        raise UsageError(f"{run} holds no state of a training run")
    weights = {spec.name: whole_of([s["model"][spec.name] for s in states], spec, config) for spec in tensors(config)}
    return weights, states[0]["step"]
