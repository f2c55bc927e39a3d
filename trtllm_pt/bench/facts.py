"""What reports and tables say about an engine and about the machine.

Columns that TensorRT-LLM's benchmarks also have keep the names they have there.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.backends import inspect
from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files of an engine directory say about the engine, read before it runs."""

    folder: Path
    manifest: EngineManifest
    inspected: dict[str, Any]  # the result of `trtllm-pt inspect`

    @classmethod
    def of(cls, folder: Path) -> Facts:
        """Read an engine directory. Raises UsageError if `folder` is not one."""
        return cls(folder, read_engine(folder), inspect(folder))

    @property
    def model(self) -> ModelConfig:
        """The config of the model that the engine runs."""
        return self.manifest.model

    @property
    def track_depth(self) -> int:
        """The number of layers between two all-reduces of whole streams, or 0 if the schedule has no tracks."""
        return self.model.block_depth or self.model.sync_every or 0

    def syncs(self, seen: int | None) -> int:
        """Return the number of all-reduces between ranks per forward.

        `seen` is the number counted at run time. If it is None, the schedule gives the number.
        """
        if self.manifest.ranks == 1:
            return 0
        return int(self.inspected["sync_points"]) if seen is None else seen

    @property
    def boundary_bytes(self) -> int:
        """The bytes that all all-reduces of a forward together carry for one token."""
        return sum(each["bytes_per_token"] for each in self.inspected["collectives"] if each["kind"] == "all_reduce")

    @property
    def hops(self) -> int:
        """The number of gathers and broadcasts in a step."""
        return sum(each["kind"] != "all_reduce" for each in self.inspected["collectives"])

    def columns(self) -> dict[str, object]:
        """Return the columns that describe the engine in every table."""
        model, checkpoint = self.model, self.manifest.checkpoint
        return {
            "engine_dir": str(self.folder),
            "world_size": self.manifest.ranks,
            "num_heads": model.num_heads * model.tracks,
            "num_kv_heads": model.num_kv_heads * model.tracks,
            "num_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "vocab_size": model.vocab_size,
            "precision": checkpoint.dtype,
            "quantization": checkpoint.quant_algo or "",
            "engine": self.manifest.backend.name,
            "schedule": model.schedule,
            "n_tracks": model.tracks,
            "track_depth": self.track_depth,
        }


def machine_facts() -> dict[str, Any]:
    """Return the machine's name and its memory in GiB, under the keys that trtllm-bench uses for the first GPU.

    Without a GPU, the name is that of the processor and the memory is that of the machine.
    """
    return {
        "name": _processor(),
        "memory.total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "clocks.mem": None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"
