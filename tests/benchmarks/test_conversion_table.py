"""The table of conversions, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.test_scripts import run
from tests.configs import SMALL
from tests.spd.models import save_dense, save_text


def test_conversion_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dense = SMALL.replace(tracks=1, schedule="tp", block_depth=None, num_layers=2)
    texts = [save_text(tmp_path / f"{seed}.txt", 300, seed) for seed in range(2)]
    arguments = ["--tracks", "2", "--train", texts[0], "--test", texts[1], "--window", "16", "--steps", "3"]
    model = save_dense(tmp_path / "model", dense)
    done = run("conversion_table.py", model, *arguments, "--batch-tokens", "64", "--block-depths", "1", "--json")
    assert done.returncode == 0, done.stderr
    pt, dtp = json.loads(done.stdout)["rows"]
    starts = {"as it is", "rearranged"}
    assert set(pt) == {"schedule", "block_depth", "guesses", "distilled", "from scratch", "tokens"} | starts
    assert set(dtp) == {"schedule", "delay", "distilled", "from scratch", "tokens"} | starts
    assert (pt["schedule"], pt["block_depth"], pt["tokens"]) == ("pt", 1, 3 * 64)
    assert (dtp["schedule"], dtp["delay"], dtp["tokens"]) == ("dtp", 1, 3 * 64)
    assert len({*pt.values()}) == len(pt) and len({*dtp.values()}) == len(dtp)  # every figure is its own
