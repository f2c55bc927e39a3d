"""Quantised matrices stay quantised in the plan: the compiler makes the dequantisation a part of each product."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.tensorrt.test_collectives import compiled
from trtllm_pt.backends.tensorrt.log import Log
from trtllm_pt.checkpoint.init import init
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.presets import preset

MODEL = preset("pt-150m").replace(num_layers=1, block_depth=1, vocab_size=512)


def products(monkeypatch: pytest.MonkeyPatch, model: ModelConfig, ranks: int, algo: str, folder: Path) -> list[str]:
    """The layers that the compiler's log calls products of matrices, of a plan for `algo`."""
    found: list[str] = []
    take = Log.take

    def listening(self: Log, severity: str, message: str) -> None:
        take(self, severity, message)
        found.extend(line for line in message.splitlines() if line.startswith("Name: ") and "LayerType: gemm" in line)

    monkeypatch.setattr(Log, "take", listening)
    checkpoint = init(model, folder / "checkpoint", ranks=ranks, dtype="bfloat16", quantize=algo)
    compiled(checkpoint, 0, folder)
    return [line for line in found if "transformer." in line or "__mye" in line.split(",")[0]]


@pytest.mark.parametrize(("algo", "ranks"), [("W8A16", 8), ("W4A16", 8), ("W4A16", 2)])
def test_no_product_reads_unpacked_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algo: str, ranks: int
) -> None:
    """A product whose weights were unpacked before is a plain product, which the log calls gemm."""
    assert products(monkeypatch, MODEL, ranks, algo, tmp_path) == []
