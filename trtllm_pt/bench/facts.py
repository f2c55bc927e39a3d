"""What tables say of an engine, under the names of TensorRT-LLM's benchmarks and ours beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.backends import inspect
from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Facts:
    """An engine directory, before it runs."""

    folder: Path
    manifest: EngineManifest
    inspected: dict[str, Any]  # inspect's

    @classmethod
    def of(cls, folder: Path) -> Facts:
        """Raises UsageError where there is no engine directory."""
        return cls(folder, read_engine(folder), inspect(folder))

    @property
    def model(self) -> ModelConfig:
        return self.manifest.model

    @property
    def track_depth(self) -> int:
        """Layers between two syncs of whole streams; 0: the schedule has none."""
        return self.model.block_depth or self.model.sync_every or 0

    def syncs(self, seen: int | None) -> int:
        """All-reduces between ranks per forward: as counted at run time, else as the schedule has them."""
        if self.manifest.ranks == 1:
            return 0
        return int(self.inspected["sync_points"]) if seen is None else seen

    @property
    def boundary_bytes(self) -> int:
        """Of all all-reduces, for one token."""
        return sum(each["bytes_per_token"] for each in self.inspected["collectives"] if each["kind"] == "all_reduce")

    @property
    def hops(self) -> int:
        """Gathers and broadcasts of a step."""
        return sum(each["kind"] != "all_reduce" for each in self.inspected["collectives"])

    def columns(self) -> dict[str, object]:
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
