"""The table of Sync-Point Drop, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.test_scripts import run
from tests.configs import SMALL
from tests.spd.models import save_dense, save_text


def test_spd_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dense = SMALL.replace(tracks=1, schedule="tp", block_depth=None, num_layers=2)
    texts = [save_text(tmp_path / f"{seed}.txt", 300, seed) for seed in range(2)]
    arguments = ["--ranks", "2", "--train", texts[0], "--test", texts[1], "--window", "16", "--steps", "2"]
    done = run("spd_table.py", save_dense(tmp_path / "model", dense), *arguments, "--seeds", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rises = report["rises"]
    assert {way: len(runs) for way, runs in rises.items()} == {
        "last layers": 1,
        "least sensitive": 1,
        "random": 2,
        "distilled": 2,
        "grouped, distilled": 2,
    }
    [last], [least] = rises["last layers"], rises["least sensitive"]
    assert last[1] == least[1] == rises["random"][0][1]  # all layers, however they are chosen
    first_of = {run[0] for run in (last, least, *rises["random"])}
    assert len(first_of) == 2 and least[0] == (last[0] if report["order"] == [1, 0] else max(first_of - {last[0]}))
    assert report["counts"] == [1, 2] and set(report["proposed"]) <= {0, 1}
    (tmp_path / "results.json").write_text(done.stdout)
    shown = run("spd_table.py", "--show", tmp_path / "results.json")
    assert shown.returncode == 0, shown.stderr
    assert f"{least[0]:+.2%}" in shown.stdout
