"""A checkpoint that an earlier version wrote is still read, converted and built.

`format_1` was written before the release of 0.1.0: three layers of two narrow tracks on two ranks, with the logits that
the reference network gave then.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trtllm_pt import LLM, SamplingParams, build, convert
from trtllm_pt.checkpoint.load import load_reference

FORMAT_1 = Path(__file__).parent / "format_1"
RECORDED = json.loads((FORMAT_1 / "logits.json").read_text())


def last_logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = load_reference(folder, torch.float64)(torch.tensor([RECORDED["tokens"]]))
    return logits[0, -1]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Without the file that a checkpoint does not have."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in FORMAT_1.iterdir():
        if path.name != "logits.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_it_is_read_as_the_same_model(checkpoint: Path) -> None:
    torch.testing.assert_close(
        last_logits(checkpoint), torch.tensor(RECORDED["last_logits"]).double(), rtol=0, atol=1e-7
    )


def test_it_converts_to_another_number_of_ranks(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "one", ranks=1)
    assert torch.equal(last_logits(tmp_path / "one"), last_logits(checkpoint))


@pytest.mark.slow
def test_it_builds(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "engines", "embedded")
    with LLM(tmp_path / "engines") as llm:
        [result] = llm.generate([RECORDED["tokens"]], SamplingParams(max_tokens=1))
    assert result.token_ids == (int(torch.tensor(RECORDED["last_logits"]).argmax()),)
