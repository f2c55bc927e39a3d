"""An engine's weights are those of its checkpoint, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.models import CONFIGS, saved
from trtllm_pt.backends.embedded.pack import write_weights
from trtllm_pt.backends.embedded.unpack import engine_weights
from trtllm_pt.backends.export import export
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.model.tensors import tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights(name: str, ranks: int, dtype: str, tmp_path: Path) -> None:
    """Without a graph, which has no weights."""
    _, folder = saved(CONFIGS[name], tmp_path / "model", dtype)
    checkpoint = CheckpointDir(convert(folder, tmp_path / "checkpoint", ranks))
    write_weights(tmp_path / "checkpoint", checkpoint.manifest, tmp_path, progress=False)
    engine = engine_weights(tmp_path, checkpoint.manifest)
    for spec in tensors(checkpoint.config):
        for track in range(checkpoint.config.tracks if spec.per_track else 1):
            [got], [want] = engine.stored(spec, track), checkpoint.stored(spec, track)
            assert got.dtype == want.dtype and torch.equal(got, want), spec.name


def test_export(engine: Callable[[str], Path], tmp_path: Path) -> None:
    folder = engine("pretrained-2")
    exported = export(folder, tmp_path / "exported")
    again = convert(exported, tmp_path / "again", 2)
    for path in (folder.parent / "checkpoint-pretrained-2").rglob("*.*"):
        assert (again / path.relative_to(folder.parent / "checkpoint-pretrained-2")).read_bytes() == path.read_bytes()
