"""Quantised matrices stay quantised in the plan: the compiler makes the dequantisation a part of each product."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.backends.tensorrt.test_collectives import compiled
from trtllm_pt.backends.tensorrt.log import Log
from trtllm_pt.checkpoint.init import init
from trtllm_pt.model.presets import preset

MODEL = preset("pt-150m").replace(num_layers=1, block_depth=1, vocab_size=512)


UNPACKS = re.compile(r"^Name: __myl_(?:Repl)?CastMulCast(?:Resh)?_myl\d+_\d+, LayerType: kgen", re.MULTILINE)


def unpacking(monkeypatch: pytest.MonkeyPatch, ranks: int, algo: str, folder: Path) -> int:
    """The number of compiled layers that only unpack weights: cast, multiply by a scale, cast."""
    found: list[str] = []
    take = Log.take

    def listening(self: Log, severity: str, message: str) -> None:
        take(self, severity, message)
        found.extend(UNPACKS.findall(message))

    monkeypatch.setattr(Log, "take", listening)
    checkpoint = init(MODEL, folder / "checkpoint", ranks=ranks, dtype="bfloat16", quantize=algo)
    compiled(checkpoint, 0, folder)
    return len(found)


@pytest.mark.parametrize(("algo", "ranks"), [("W8A16", 8), ("W4A16", 8), ("W4A16", 2)])
def test_no_weights_are_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algo: str, ranks: int) -> None:
    assert unpacking(monkeypatch, ranks, algo, tmp_path) == 0


def test_int8_weights_of_several_tracks_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason why `trtllm-pt build` refuses them."""
    assert unpacking(monkeypatch, 2, "W8A16", tmp_path) == 2 * 5  # of each profile, each matrix
