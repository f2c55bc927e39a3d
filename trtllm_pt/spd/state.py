"""Folders in the cache that hold the state of a long command, for the next one with the same inputs."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from trtllm_pt.checkpoint.source import Source
from trtllm_pt.errors import UsageError
from trtllm_pt.files.cache import cache_dir


@contextmanager
def state_folder(what: str, model_dir: Path, source: Source, windows: Tensor, *more: Any) -> Iterator[Path]:
    """Yield the folder of a command for these inputs, which no other process has meanwhile.

    Raises UsageError if another process has it.
    """
    parts = [source.config.to_json(), _files(model_dir), hashlib.sha256(windows.numpy().tobytes()).hexdigest(), *more]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = cache_dir() / "spd" / f"{what}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process works on the same model and text, in {folder}; wait for it") from None
        yield folder


def _files(model_dir: Path) -> list[tuple[str, int, int]]:
    """Return what tells the weights of a directory from others: names, sizes and times of its files."""
    found = sorted(model_dir.resolve().glob("*.safetensors"))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
